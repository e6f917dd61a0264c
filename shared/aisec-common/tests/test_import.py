import subprocess
import sys

from aisec_common.testing import IMPORT_ALONE


def loaded_by(statement):
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_import_loads_neither_numpy_nor_torch():
    assert not loaded_by("import aisec_common") & {"numpy", "scipy", "torch", "transformers", "matplotlib"}


def test_list_and_info_load_neither_numpy_nor_torch():
    assert not loaded_by("from aisec_common import cli; cli.main(['list'])") & {"numpy", "scipy", "torch"}


def test_import_touches_no_device_and_no_network():
    code = IMPORT_ALONE.format(module="aisec_common, aisec_common.data, aisec_common.torch.device")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
