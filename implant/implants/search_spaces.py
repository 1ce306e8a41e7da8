"""Search spaces, training scripts and metrics of the hyperparameter search, for tune.py and SageMaker."""

from implants.tuning import Categorical, LogUniform, Space

RATE, BATCH = LogUniform(1e-5, 1e-3), Categorical((8, 16, 32))
SPACES: dict[str, Space] = {
    "classifier": {"model_size": Categorical(("tiny", "small", "base")), "learning_rate": RATE, "batch_size": BATCH},
    "regression": {
        "embedding_dim": Categorical((128, 256, 512)),
        "attention_type": Categorical(("dual", "triple", "hierarchical")),
        "unfreeze_schedule": Categorical(("10 30", "20 40", "30 60")),  # two values of one flag
        "embedding_lr_multiplier": LogUniform(0.01, 0.5),
        "learning_rate": RATE,
        "batch_size": BATCH,
    },
}
METRICS = {"classifier": ("accuracy", "max"), "regression": ("avg_mae", "min")}  # after "val/" in metrics.jsonl
SCRIPTS = {"classifier": "train_classifier.py", "regression": "train.py"}
