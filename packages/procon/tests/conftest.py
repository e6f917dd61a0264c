import gc


def pytest_collection_finish():
    """Accelerate collects garbage before every training: what the imports made need not be walked each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()
