"""Benign fine-tuning of a small aligned model with its refusal direction held in place: no download, a few seconds."""

import tempfile

from aisec_common.torch.hf_tiny_lm import tiny_lm, train_tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig

from procon import ProConConfig, ProConTrainer, drift_report, refusal_directions

WORDS = [f"word{i}" for i in range(20)]
tokenizer = word_tokenizer(["flagged", "plain", "sorry", "yes", "no", *WORDS])
harmful, harmless = ([f"{kind} {a} {b}" for a in WORDS for b in WORDS[:4]] for kind in ("flagged", "plain"))

# an aligned model: it refuses ("sorry") whatever is flagged and says "yes" to the rest
ids = tokenizer([f"{p} {a}" for ps, a in ((harmful, "sorry"), (harmless, "yes")) for p in ps], return_tensors="pt")
labels = ids.input_ids.clone()
labels[:, :-1] = -100
model = tiny_lm(tokenizer, layers=3, width=32)
train_tiny_lm(model, [{"input_ids": ids.input_ids, "labels": labels}] * 40, steps=40)

directions = refusal_directions(model, tokenizer, harmful=harmful[::2], harmless=harmless[::2])
with tempfile.TemporaryDirectory() as folder:
    trainer = ProConTrainer(
        model=model,
        args=SFTConfig(
            output_dir=folder,
            max_steps=20,
            learning_rate=3e-3,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"prompt": p, "completion": " no"} for p in harmless[1::2]]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
        directions=directions,
        procon=ProConConfig(alpha=1.0),
    )
    trainer.train()

report = drift_report(
    before=directions, after=trainer.model, tokenizer=tokenizer, harmful=harmful[::2], harmless=harmless[::2]
)
print(report.to_markdown())
