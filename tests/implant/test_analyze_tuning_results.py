"""implant/analyze_tuning_results.py, on studies with a made-up objective and on a stubbed SageMaker."""

import datetime
import math
import threading

import boto3
import numpy as np
import optuna
import pytest
from botocore.stub import Stubber
from matplotlib.colors import to_hex

from conftest import load_script, loads_nothing
from core.errors import UserError
from core.figures import GREY, RED
from files import read_csv, read_json
from implants import tuning
from implants.search_spaces import SPACES
from implants.tuning import TrialFailed
from implants.tuning_plots import history, importances, parallel_coordinates

analysis = load_script("implant/analyze_tuning_results.py")


def make_study(storage, name="implant_regression", trials=20, direction="minimize"):
    """Only the learning rate matters, best at 1e-4. Trial 3 fails, those with batches of 32 are pruned."""
    pruner = optuna.pruners.NopPruner()
    study = tuning.open_study(tuning.open_storage(storage), name, direction, pruner, {"metric": "val/avg_mae"})

    def attempt(worker, number, parameters, report):
        if number == 3:
            raise TrialFailed("no memory")
        report(1, 9.0)
        if parameters["batch_size"] == 32 and number > 0:
            raise optuna.TrialPruned
        return 0.5 + abs(math.log10(parameters["learning_rate"] / 1e-4))

    options = {"seed": 0, "stop": threading.Event(), "told": lambda trial: None}
    tuning.search(study, SPACES["regression"], attempt, trials=trials, parallel=1, **options)
    return study


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    """(study, folder of its analysis). Not to be written to."""
    folder = tmp_path_factory.mktemp("analysis")
    storage = f"journal:{folder / 'journal.log'}"
    study = make_study(storage, trials=40)
    analysis.main(["--storage", storage, "--output", str(folder / "results")])
    return study, folder / "results"


def test_metrics_and_best_trial(analysed):
    study, folder = analysed
    metrics = read_json(folder / "metrics.json")
    pruned = len(study.get_trials(states=(optuna.trial.TrialState.PRUNED,)))
    assert 0 < pruned < 20
    assert metrics["trials"] == {"complete": 40 - pruned, "pruned": pruned, "failed": 1}
    best = study.best_trial
    assert metrics["best"] == {
        "name": f"trial_{best.number:04}", "status": "complete", "parameters": best.params, "value": best.value,
    }  # fmt: skip
    assert (metrics["metric"], metrics["mode"]) == ("avg_mae", "min")


def test_importances_find_the_parameter_that_matters(analysed):
    shares = read_json(analysed[1] / "metrics.json")["importances"]
    assert set(shares) <= set(SPACES["regression"])
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=shares.get) == "learning_rate"


def test_table_has_every_trial_with_all_digits(analysed):
    study, folder = analysed
    rows = read_csv(folder / "trials.csv")
    assert [row["name"] for row in rows] == [f"trial_{i:04}" for i in range(41)]
    assert rows[3]["status"] == "failed"
    assert rows[3]["value"] == ""
    for row, trial in zip(rows, study.trials, strict=True):
        assert float(row["learning_rate"]) == trial.params["learning_rate"]
        assert row["unfreeze_schedule"] == trial.params["unfreeze_schedule"]


def test_report_stands_alone(analysed):
    study, folder = analysed
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3
    assert f"trial_{study.best_trial.number:04}" in page
    assert "lower is better" in page
    assert loads_nothing(page)


def test_few_trials_have_no_importances(tmp_path, capsys):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    make_study(storage, trials=5)
    analysis.main(["--storage", storage, "--output", str(tmp_path / "results")])
    assert read_json(tmp_path / "results" / "metrics.json")["importances"] == {}
    assert "Needs 8 complete trials" in (tmp_path / "results" / "report.html").read_text()
    assert "report: " in capsys.readouterr().out


def test_interrupted_and_waiting_trials_are_left_out(tmp_path):
    storage = f"journal:{tmp_path / 'log'}"
    study = make_study(storage, trials=4)
    study.ask()
    tuning.requeue_running(study)
    args = analysis.parse_args(["--storage", storage])
    assert len(study.trials) == 7
    assert [trial["name"][-1] for trial in analysis.from_storage(args)[3]] == list("01234")


def test_which_study(tmp_path):
    storage = f"journal:{tmp_path / 'log'}"
    output = ["--output", str(tmp_path / "results")]
    for name in ("one", "two"):
        make_study(storage, name, trials=2)
    with pytest.raises(UserError, match=r"holds 2 studies: choose one by --study_name \['one', 'two'\]"):
        analysis.main(["--storage", storage])
    with pytest.raises(UserError, match="has no study three, but one, two"):
        analysis.main(["--storage", storage, "--study_name", "three"])
    analysis.main(["--storage", storage, "--study_name", "two", *output])
    assert read_json(tmp_path / "results" / "metrics.json")["search"] == "two"
    with pytest.raises(UserError, match="no such file"):
        analysis.main(["--storage", f"journal:{tmp_path / 'none'}"])


def test_nothing_complete_yet(tmp_path):
    storage = f"journal:{tmp_path / 'log'}"
    study = make_study(storage, trials=0)
    with pytest.raises(UserError, match=r"no complete trial yet \(none at all\)"):
        analysis.main(["--storage", storage])
    study.ask()
    with pytest.raises(UserError, match=r"no complete trial yet \(1 running\)"):
        analysis.main(["--storage", storage])


def test_one_source(capsys):
    for given in ([], ["--storage", "journal:x", "--tuning-job-name", "y"]):
        with pytest.raises(SystemExit):
            analysis.parse_args(given)
    assert "--tuning_job_name" in capsys.readouterr().err
    assert analysis.parse_args(["--tuning-job-name", "y"]).tuning_job_name == "y"


# ----------------------------------------------------------------------------------------------------------- SageMaker


def summary(number, status, accuracy=None, **parameters):
    """A training job as SageMaker lists it: numbers are texts."""
    job = {
        "TrainingJobName": f"tune-{number:03}", "TrainingJobArn": "arn:aws:sagemaker:eu-central-1:1:training-job/x",
        "TrainingJobStatus": status, "CreationTime": datetime.datetime(2026, 1, 1), "TunedHyperParameters": parameters,
        "ObjectiveStatus": "Succeeded",
    }  # fmt: skip
    if accuracy is not None:
        job["FinalHyperParameterTuningJobObjectiveMetric"] = {"MetricName": "val_accuracy", "Value": accuracy}
    return job


def test_a_tuning_job_of_sagemaker(tmp_path, monkeypatch):
    sizes = ("tiny", "small", "base")
    jobs = [
        summary(
            i, "Completed", 0.5 + i / 100, model_size=sizes[i % 3], learning_rate=str(1e-5 * 1.5**i), batch_size="8"
        )
        for i in range(10)
    ]
    jobs += [summary(10, "Stopped", 0.4, model_size="tiny", learning_rate="2E-5", batch_size="16")]
    jobs += [
        summary(11, "Failed"),
        summary(12, "InProgress", model_size="base", learning_rate="0.001", batch_size="32"),
    ]
    client = boto3.client("sagemaker", "eu-central-1", aws_access_key_id="testing", aws_secret_access_key="testing")
    monkeypatch.setattr("sagemaker_launcher.make_client", lambda service, region: client)
    stub = Stubber(client)
    objective = {"Type": "Maximize", "MetricName": "val_accuracy"}
    config = {"Strategy": "Bayesian", "HyperParameterTuningJobObjective": objective,
              "ResourceLimits": {"MaxParallelTrainingJobs": 4}}  # fmt: skip
    described = {
        "HyperParameterTuningJobName": "tune", "HyperParameterTuningJobArn": jobs[0]["TrainingJobArn"],
        "HyperParameterTuningJobConfig": config, "HyperParameterTuningJobStatus": "InProgress",
        "CreationTime": datetime.datetime(2026, 1, 1), "TrainingJobStatusCounters": {},
        "ObjectiveStatusCounters": {},
    }  # fmt: skip
    stub.add_response("describe_hyper_parameter_tuning_job", described, {"HyperParameterTuningJobName": "tune"})
    stub.add_response("list_training_jobs_for_hyper_parameter_tuning_job", {"TrainingJobSummaries": jobs})
    with stub:
        analysis.main(["--tuning-job-name", "tune", "--output", str(tmp_path)])
    metrics = read_json(tmp_path / "metrics.json")
    assert metrics["trials"] == {"complete": 10, "pruned": 1, "failed": 1, "running": 1}
    assert (metrics["metric"], metrics["mode"], metrics["best"]["name"]) == ("val_accuracy", "max", "tune-009")
    assert metrics["best"]["parameters"] == {"model_size": "tiny", "learning_rate": 1e-5 * 1.5**9, "batch_size": 8}
    assert "batch_size" not in metrics["importances"]  # it did not vary
    assert "higher is better" in (tmp_path / "report.html").read_text()


# ------------------------------------------------------------------------------------------------------------ pictures


def trial(number, value, status="complete", **parameters):
    return {"name": f"trial_{number:04}", "status": status, "parameters": parameters, "value": value}


RATES = (1e-5, 1e-3, 1e-4, 3e-4)
TRIALS = [trial(i, value, learning_rate=rate, model_size=size)
          for i, (value, rate, size) in enumerate(zip((0.7, 0.5, 0.6, 0.9), RATES, ("base", "tiny", "small", "tiny"),
                                                      strict=True))]  # fmt: skip
TRIALS += [trial(4, 7.0, "pruned", learning_rate=2e-5, model_size="tiny"), trial(5, None, "failed")]


@pytest.mark.parametrize(
    ("mode", "best", "so_far"), [("min", 1, [0.7, 0.5, 0.5, 0.5]), ("max", 3, [0.7, 0.7, 0.7, 0.9])]
)
def test_history_shows_the_best_so_far_and_who_ended_early(mode, best, so_far):
    ax = history(TRIALS, "avg_mae", mode).axes[0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [*so_far, so_far[-1]])
    complete, pruned, failed, star = ax.collections
    assert complete.get_offsets().tolist() == [[0, 0.7], [1, 0.5], [2, 0.6], [3, 0.9]]
    assert [pruned.get_offsets()[0][0], failed.get_offsets()[0][0]] == [4, 5]
    assert star.get_offsets()[0][0] == best
    assert ax.get_ylim()[1] < 1  # the value of the pruned trial does not press the others together


@pytest.mark.parametrize(("mode", "best", "heights"), [("min", 1, [0.5, 1, 0.75, 0]), ("max", 3, [0.5, 0, 0.25, 1])])
def test_parallel_coordinates(mode, best, heights):
    ax = parallel_coordinates(TRIALS, "avg_mae", mode).axes[0]
    lines = [line for line in ax.lines if len(line.get_xdata()) == 3 and line.get_xdata()[0] == 0]
    assert len(lines) == 5  # the failed trial has no parameters
    pruned, *complete = lines
    assert to_hex(pruned.get_color()) == GREY
    assert np.isnan(pruned.get_ydata()[-1])
    ranked = sorted(heights)
    np.testing.assert_allclose([line.get_ydata()[-1] for line in complete], ranked, atol=0.013)
    assert [to_hex(line.get_color()) == RED for line in complete] == [False, False, False, True]
    rate, size, _ = complete[-1].get_ydata()
    assert rate == pytest.approx(np.log10(RATES[best] / 1e-5) / 2)  # a logarithmic axis
    assert size == pytest.approx(1 / 6)  # tiny, small, base: not the alphabet's order
    labels = {text.get_text() for text in ax.texts}
    assert {"1e-4", "tiny", "small", "base"} <= labels


def test_one_trial_can_be_drawn():
    history(TRIALS[:1], "accuracy", "max")
    parallel_coordinates(TRIALS[:1], "accuracy", "max")


def test_importances_name_every_parameter():
    ax = importances({"learning_rate": 0.75, "batch_size": 0.25}).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["learning_rate", "batch_size"]
    assert [bar.get_width() for bar in ax.patches] == [75, 25]
