"""A very small language model under the Trainer, that may be killed at any step."""

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

import trialkeeper
from trialkeeper.integrations.transformers import TrialCallback, resume_from_checkpoint


def train():
    p = trialkeeper.get_params(lr=1e-3, epochs=4)
    seed = trialkeeper.get_context().seed
    set_seed(seed)
    text = torch.randint(64, (64, 16), generator=torch.Generator().manual_seed(seed))
    data = [{"input_ids": line, "labels": line} for line in text]
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(dir=trialkeeper.get_context().scratch),
        num_train_epochs=p.epochs,
        per_device_train_batch_size=4,
        learning_rate=p.lr,
        logging_steps=8,
        save_strategy="no",
        seed=seed,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
    )
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[TrialCallback()])
    trainer.train(resume_from_checkpoint=resume_from_checkpoint())


if __name__ == "__main__":
    train()
