"""The SageMaker launcher against botocore's model of the service, moto and stubbed answers; the container's side in
folders laid out as SageMaker's. Nothing here reaches AWS."""

import argparse
import contextlib
import gzip
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from datetime import datetime, timedelta, timezone

import boto3
import pytest
from accelerate.commands import launch
from botocore.exceptions import EndpointConnectionError, NoCredentialsError, ParamValidationError, ProfileNotFound
from botocore.stub import Stubber
from botocore.validate import ParamValidator
from moto import mock_aws

from conftest import ROOT, load_script
from core.errors import UserError
from implants import sagemaker_container as container
from implants.search_spaces import SPACES

launcher = load_script("implant/sagemaker_launcher.py")

ROLE = "arn:aws:iam::123456789012:role/SageMaker"
URIS = {"train": "s3://bucket/data/", "company": "s3://bucket/c/model.tar.gz", "model": "s3://bucket/m/model.tar.gz"}
REGION = "eu-central-1"
COMMON = ["--role", ROLE, "--image_uri", "image", "--train", URIS["train"], "--output", "s3://bucket/tuning/"]
CLASSIFIER = ["--stage", "classifier", *COMMON]
CHECKPOINTS = ["--company_checkpoint", URIS["company"], "--model_checkpoint", URIS["model"]]
REGRESSION = ["--stage", "regression", *COMMON, *CHECKPOINTS]


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """Neither the machine's credentials nor its region; no variable of a container."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "SM_")) or name in ("RANK", "TRAINING_JOB_NAME"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def account(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with mock_aws():
        yield


def client(service="sagemaker"):
    return boto3.client(service, REGION, aws_access_key_id="testing", aws_secret_access_key="testing")


def request(stage="regression", name="a-name", **options):
    channels = URIS if stage == "regression" else {"train": URIS["train"]}
    defaults = {"role": ROLE, "image_uri": "image", "source": "s3://bucket/source.tar.gz", "output": "s3://bucket/out"}
    return launcher.build_tuning_request(stage, name, **{**defaults, "channels": channels, **options})


def dry_run(capsys, *arguments):
    launcher.main([*arguments, "--dry_run"])
    return json.loads(capsys.readouterr().out)


def refused(shape, value, path="request"):
    """What the service would refuse besides types: botocore itself checks no pattern, maximum or enumeration."""
    if shape.type_name == "structure":
        return [bad for name, item in value.items() for bad in refused(shape.members[name], item, f"{path}.{name}")]
    if shape.type_name in ("list", "map"):
        items = value.values() if shape.type_name == "map" else value
        member = shape.value if shape.type_name == "map" else shape.member
        bad = [f"{path}: {len(value)} items"] if len(value) > shape.metadata.get("max", len(value)) else []
        return bad + [each for item in items for each in refused(member, item, f"{path}[]")]
    if shape.type_name != "string":
        return [path] if not shape.metadata.get("min", value) <= value <= shape.metadata.get("max", value) else []
    rules = shape.metadata
    good = len(value) <= rules.get("max", len(value)) and value in (rules.get("enum") or [value])
    good = good and re.fullmatch(rules.get("pattern", "(?s).*"), value)
    return [] if good else [f"{path}: {value}"]


def as_the_toolkit(hyperparameters):
    """argv as the SageMaker training toolkit makes it: JSON where a text is JSON, the text itself elsewhere, one word
    a value, in the names' order; its own sagemaker_… are kept back."""
    argv = []
    for name in sorted(name for name in hyperparameters if not name.startswith("sagemaker_")):
        text = hyperparameters[name]
        with contextlib.suppress(ValueError):
            text = json.loads(text)
        argv += [f"--{name}", "" if text is None else str(text)]
    return argv


# ------------------------------------------------------------------------------------------------------------- request


@pytest.mark.parametrize("stage", ["classifier", "regression"])
@pytest.mark.parametrize("options", [{}, {"spot": True, "region": REGION, "fixed": {"epochs": "3", "uncertainty": ""}}])
def test_the_service_takes_the_request(stage, options):
    shape = client().meta.service_model.operation_model("CreateHyperParameterTuningJob").input_shape
    made = request(stage, **options)
    report = ParamValidator().validate(made, shape)
    assert not report.has_errors(), report.generate_report()
    assert refused(shape, made) == []
    made["HyperParameterTuningJobName"] = "x" * 33  # the check above can fail
    made["TrainingJobDefinition"]["ResourceConfig"]["InstanceType"] = "a-laptop"
    assert len(refused(shape, made)) == 2


@pytest.mark.parametrize(
    ("stage", "program", "metric", "goal"),
    [
        ("classifier", "train_classifier.py", "val_accuracy", "Maximize"),
        ("regression", "train.py", "avg_mae", "Minimize"),
    ],
)
def test_each_stage_has_its_script_and_metric(stage, program, metric, goal, monkeypatch, capsys):
    made = request(stage)
    definition, config = made["TrainingJobDefinition"], made["HyperParameterTuningJobConfig"]
    assert json.loads(definition["StaticHyperParameters"]["sagemaker_program"]) == program
    assert config["HyperParameterTuningJobObjective"] == {"Type": goal, "MetricName": metric}
    monkeypatch.setenv("SM_MODEL_DIR", "/model")
    container.report(metric, 1.25e-7)
    (rule,) = definition["AlgorithmSpecification"]["MetricDefinitions"]
    assert rule["Name"] == metric
    assert float(re.search(rule["Regex"], capsys.readouterr().out)[1]) == 1.25e-7


def test_reference_values(capsys):
    made = dry_run(capsys, *CLASSIFIER)
    config, definition = made["HyperParameterTuningJobConfig"], made["TrainingJobDefinition"]
    assert config["Strategy"] == "Bayesian"
    assert config["ResourceLimits"] == {"MaxNumberOfTrainingJobs": 20, "MaxParallelTrainingJobs": 4}
    assert config["TrainingJobEarlyStoppingType"] == "Auto"
    assert definition["ResourceConfig"]["InstanceType"] == "ml.g5.xlarge"
    assert definition["StoppingCondition"] == {"MaxRuntimeInSeconds": 24 * 3600}
    assert "CheckpointConfig" not in definition
    off = dry_run(capsys, *CLASSIFIER, "--no-early-stopping")
    assert off["HyperParameterTuningJobConfig"]["TrainingJobEarlyStoppingType"] == "Off"


@pytest.mark.parametrize("stage", ["classifier", "regression"])
def test_the_spaces_are_those_of_the_local_search(stage):
    ranges = request(stage)["HyperParameterTuningJobConfig"]["ParameterRanges"]
    categorical = {entry["Name"]: entry["Values"] for entry in ranges["CategoricalParameterRanges"]}
    continuous = {entry["Name"]: entry for entry in ranges["ContinuousParameterRanges"]}
    assert set(categorical) | set(continuous) == set(SPACES[stage])
    for name, values in categorical.items():
        assert [json.loads(value) for value in values] == [str(choice) for choice in SPACES[stage][name].choices]
        assert [launcher.parsed(value) for value in values] == list(SPACES[stage][name].choices)
    for name, entry in continuous.items():
        limits = float(entry["MinValue"]), float(entry["MaxValue"])
        assert limits == (SPACES[stage][name].low, SPACES[stage][name].high)
        assert entry["ScalingType"] == "Logarithmic"


def test_spot_jobs_keep_checkpoints_and_wait(capsys):
    definition = dry_run(capsys, *REGRESSION, "--spot", "--max_hours", "1.5", "--job_name", "n")[
        "TrainingJobDefinition"
    ]
    assert definition["EnableManagedSpotTraining"]
    condition = definition["StoppingCondition"]
    assert condition["MaxWaitTimeInSeconds"] > condition["MaxRuntimeInSeconds"] == 5400
    places = {"S3Uri": "s3://bucket/tuning/n/checkpoints", "LocalPath": "/opt/ml/checkpoints"}
    assert definition["CheckpointConfig"] == places


def test_channels(capsys):
    definition = dry_run(capsys, *REGRESSION, "--val", "s3://bucket/val")["TrainingJobDefinition"]
    channels = {each["ChannelName"]: each["DataSource"]["S3DataSource"] for each in definition["InputDataConfig"]}
    assert {name: place["S3Uri"] for name, place in channels.items()} == {**URIS, "val": "s3://bucket/val"}
    assert {place["S3DataDistributionType"] for place in channels.values()} == {"FullyReplicated"}


def test_fixed_flags_leave_the_search_and_reach_the_script_as_typed(monkeypatch, capsys):
    fixed = ["batch_size=16", "auxiliary=thread_type 'neck type'", "uncertainty=", "tags=a=b", "seed=007", "x-y=null"]
    made = dry_run(capsys, *REGRESSION, *fixed)
    ranges = made["HyperParameterTuningJobConfig"]["ParameterRanges"]["CategoricalParameterRanges"]
    choices = {entry["Name"]: entry["Values"] for entry in ranges}
    assert "batch_size" not in choices
    tuned = {"unfreeze_schedule": next(text for text in choices["unfreeze_schedule"] if "20 40" in text)}
    argv = as_the_toolkit({**made["TrainingJobDefinition"]["StaticHyperParameters"], **tuned})
    monkeypatch.setenv("SM_MODEL_DIR", "/model")
    monkeypatch.setattr(sys, "argv", ["train.py", *argv])
    words = container.words(None)
    shell = "--auxiliary thread_type 'neck type' --batch_size 16 --seed 007 --tags a=b --uncertainty"
    assert words == shlex.split(shell + " --unfreeze_schedule 20 40 --x_y null")


@pytest.mark.parametrize("stage", ["classifier", "regression"])
def test_names_of_their_own_have_32_characters(stage, monkeypatch, capsys):
    arguments = CLASSIFIER if stage == "classifier" else REGRESSION
    first = dry_run(capsys, *arguments)["HyperParameterTuningJobName"]
    assert re.fullmatch(rf"{stage}-\d{{6}}-\d{{6}}", first)
    assert len(first) <= 32
    now = launcher.time.gmtime()
    monkeypatch.setattr(launcher.time, "gmtime", lambda: datetime(*now[:6]).replace(year=2099).timetuple())
    assert dry_run(capsys, *arguments)["HyperParameterTuningJobName"] != first


@pytest.mark.parametrize("name", ["x" * 33, "-a", "a-", "under_score", "a b", "ä", "a.b"])
def test_names_that_sagemaker_refuses(name, capsys):
    with pytest.raises(UserError, match="at most 32 letters, digits and hyphens"):
        dry_run(capsys, *CLASSIFIER, f"--job_name={name}")
    assert request(name="x" * 32)["HyperParameterTuningJobName"] == "x" * 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*CLASSIFIER, "--role", "SageMaker"], "SageMaker is not like arn:aws:iam::"),
        ([*CLASSIFIER, "--train", "data/train"], "data/train is not like s3://BUCKET/FOLDER"),
        ([*CLASSIFIER, "--output", "s3://"], "s3:// is not like s3://BUCKET/FOLDER"),
        ([*CLASSIFIER, "--parallel", "21"], "--parallel 21 is more than --jobs 20"),
        ([*CLASSIFIER, "--instance_count", "2"], "--instance_count must be 1: take an --instance_type with more GPUs"),
        ([*CLASSIFIER, "--max_hours", "0"], "--max_hours must be positive"),
        ([*CLASSIFIER, "epochs"], "epochs is not NAME=VALUE"),
        ([*CLASSIFIER, "sagemaker_program=x.py"], "sagemaker_program=x.py is not NAME=VALUE"),
        ([*CLASSIFIER, "auxiliary='thread"], "auxiliary='thread"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        launcher.main([*arguments, "--dry_run"])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*CLASSIFIER, *CHECKPOINTS], "--company_checkpoint is for --stage regression"),
        (["--stage", "regression", *COMMON], "embeddings=dual needs --company_checkpoint"),
        (["--stage", "regression", *COMMON, *CHECKPOINTS[:2]], "embeddings=dual needs --model_checkpoint"),
        (["--stage", "regression", *COMMON, "embeddings=model"], "embeddings=model needs --model_checkpoint"),
        ([*CLASSIFIER, *(f"{name}=1" for name in SPACES["classifier"])], "all that --stage classifier"),
    ],
)
def test_requests_that_cannot_work(arguments, message, capsys):
    with pytest.raises(UserError, match=message):
        dry_run(capsys, *arguments)


def test_a_regression_without_embeddings_needs_no_checkpoint(capsys):
    assert dry_run(capsys, "--stage", "regression", *COMMON, "embeddings=none")


# -------------------------------------------------------------------------------------------------------------- source


def unpack(packed):
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar if entry.isfile()}


def fill(folder, files):
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def test_the_packed_source_is_code_only_and_runs(tmp_path):
    files = unpack(launcher.pack_source(ROOT / "implant"))
    assert {"requirements.txt", "core/run.py", "core/losses/__init__.py", "implants/search_spaces.py"} <= set(files)
    assert {name.rsplit(".", 1)[1] for name in files} == {"py", "txt"}
    assert files["core/run.py"] == (ROOT / "core" / "run.py").read_bytes()
    fill(tmp_path, files)
    command = [sys.executable, "sagemaker_launcher.py", *REGRESSION, "--dry_run", "--job_name"]
    done, wrong = (
        subprocess.run([*command, name], cwd=tmp_path, capture_output=True, text=True, timeout=100)
        for name in ("good", "not_good")
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["HyperParameterTuningJobName"] == "good"
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert re.fullmatch("error: --job_name not_good: .*\n", wrong.stderr)


def test_equal_files_pack_to_equal_bytes(tmp_path):
    sources = {"implant/train.py": b"1", "core/a.py": b"2", "core/losses/b.py": b"3", "requirements.txt": b"torch"}
    rubbish = {"implant/__pycache__/train.pyc": b"x", "implant/runs/weights.pth": b"x", "implant/crop.png": b"x"}
    fill(tmp_path / "one", sources)
    fill(tmp_path / "two", dict(reversed(sources.items())) | rubbish | {"other/c.py": b"4"})
    os.utime(tmp_path / "two" / "core" / "a.py", (0, 0))
    packed = launcher.pack_source(tmp_path / "one" / "implant")
    assert packed == launcher.pack_source(tmp_path / "two" / "implant")
    assert unpack(packed) == {name.removeprefix("implant/"): content for name, content in sources.items()}
    assert gzip.decompress(packed)[:8] == b"core/a.p"
    assert packed[4:8] == bytes(4)  # no time, RFC 1952


def test_a_copied_folder_packs_the_core_inside_it(tmp_path):
    fill(tmp_path, {"mine/train.py": b"1", "mine/core/a.py": b"2", "core/a.py": b"other", "requirements.txt": b"3"})
    assert unpack(launcher.pack_source(tmp_path / "mine"))["core/a.py"] == b"2"
    (tmp_path / "requirements.txt").unlink()
    with pytest.raises(UserError, match=r"mine has no requirements\.txt"):
        launcher.pack_source(tmp_path / "mine")


# --------------------------------------------------------------------------------------------------------- AWS, played


def test_create_and_describe(account, capsys):
    bucket = client("s3")
    bucket.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": REGION})
    launcher.main([*REGRESSION, "--job_name", "first", "--region", REGION])
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == f"python implant/analyze_tuning_results.py --tuning-job-name first --region {REGION}"
    job = client().describe_hyper_parameter_tuning_job(HyperParameterTuningJobName="first")
    static = job["TrainingJobDefinition"]["StaticHyperParameters"]
    assert json.loads(static["sagemaker_region"]) == REGION
    bucket_name, key = json.loads(static["sagemaker_submit_directory"]).removeprefix("s3://").split("/", 1)
    stored = bucket.get_object(Bucket=bucket_name, Key=key)["Body"].read()
    assert "implants/search_spaces.py" in unpack(stored)
    state = launcher.describe(client(), "first")
    assert {"name": "first", "status": "Completed", "metric": "avg_mae", "mode": "min"}.items() <= state.items()
    with pytest.raises(UserError, match=r"first already exists.*; choose another --job_name"):
        launcher.main([*REGRESSION, "--job_name", "first", "--region", REGION])


def test_an_unknown_job_and_an_unknown_bucket(account):
    with pytest.raises(UserError, match="'nothing'; check the job's name and --region"):
        launcher.describe(client(), "nothing")
    with pytest.raises(UserError, match=r"NoSuchBucket.*; name a bucket of yours in --output"):
        launcher.main([*REGRESSION, "--region", REGION])


START = datetime(2026, 1, 1, tzinfo=timezone.utc)
SUMMARY = {"TrainingJobArn": "arn:aws:sagemaker:eu-central-1:123456789012:training-job/t", "CreationTime": START}
QUERY = {"HyperParameterTuningJobName": "job", "SortBy": "CreationTime", "SortOrder": "Ascending"}


def summary(name, status, parameters, value=None, seconds=None):
    more = {"FinalHyperParameterTuningJobObjectiveMetric": {"MetricName": "avg_mae", "Value": value}} if value else {}
    if seconds:
        more |= {"TrainingStartTime": START, "TrainingEndTime": START + timedelta(seconds=seconds)}
    return {**SUMMARY, "TrainingJobName": name, "TrainingJobStatus": status, "TunedHyperParameters": parameters, **more}


def test_results_of_all_pages():
    sagemaker, operation = client(), "list_training_jobs_for_hyper_parameter_tuning_job"
    tuned = {"learning_rate": "2.5E-4", "embedding_dim": '"256"', "unfreeze_schedule": '"20 40"', "attention": "triple"}
    pages = [
        {"TrainingJobSummaries": [summary("a", "Completed", tuned, 0.71, 90)], "NextToken": "more"},
        {"TrainingJobSummaries": [], "NextToken": "last"},
        {"TrainingJobSummaries": [summary("b", "InProgress", {"learning_rate": "0.001"}), summary("c", "Failed", {})]},
    ]
    with Stubber(sagemaker) as stub:
        for page, token in zip(pages, [{}, {"NextToken": "more"}, {"NextToken": "last"}], strict=True):
            stub.add_response(operation, page, {**QUERY, **token})
        results = launcher.tuning_results(sagemaker, "job")
        stub.assert_no_pending_responses()
    read = {"learning_rate": 2.5e-4, "embedding_dim": 256, "unfreeze_schedule": "20 40", "attention": "triple"}
    assert results == [
        {"name": "a", "status": "Completed", "parameters": read, "value": 0.71, "seconds": 90.0},
        {"name": "b", "status": "InProgress", "parameters": {"learning_rate": 0.001}, "value": None, "seconds": None},
        {"name": "c", "status": "Failed", "parameters": {}, "value": None, "seconds": None},
    ]
    assert isinstance(results[0]["parameters"]["embedding_dim"], int)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("AccessDeniedException", "ask for this permission"),
        ("ExpiredTokenException", "log in again"),
        ("UnrecognizedClientException", "log in again"),
        ("ResourceNotFound", "check the job's name and --region"),
        ("ResourceLimitExceeded", "lower --parallel or --jobs"),
        ("ValidationException", "what AWS says$"),
    ],
)
def test_what_aws_refuses_is_one_line(code, message):
    sagemaker = client()
    with Stubber(sagemaker) as stub:
        operation = "list_training_jobs_for_hyper_parameter_tuning_job"
        stub.add_client_error(operation, code, "what\nAWS says.")
        with pytest.raises(UserError, match=f"what AWS says.*{message}|{message}") as raised:
            launcher.tuning_results(sagemaker, "job")
    assert "\n" not in str(raised.value)


def test_no_region_and_no_credentials(monkeypatch):
    with pytest.raises(UserError, match="AWS needs a region: give --region"):
        launcher.main(CLASSIFIER)
    with pytest.raises(UserError, match="Unable to locate credentials; run `aws configure`"):
        launcher.main([*CLASSIFIER, "--region", REGION])
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match=r"nobody.*could not be found; run `aws configure`"):
        launcher.main([*CLASSIFIER, "--region", REGION])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NoCredentialsError(), "run `aws configure`"),
        (ProfileNotFound(profile="p"), "run `aws configure`"),
        (EndpointConnectionError(endpoint_url="https://x"), "check the network and --region"),
        (ParamValidationError(report="two\nlines"), "two lines; check"),
    ],
)
def test_what_boto_raises_is_one_line(error, message):
    assert message in launcher.explain(error)
    assert "\n" not in launcher.explain(error)


# ----------------------------------------------------------------------------------------------------------- container


@pytest.fixture
def sagemaker(monkeypatch, tmp_path):
    """The folders and variables of a container; `channel(name, {file: content})` adds a channel."""
    monkeypatch.setenv("SM_MODEL_DIR", str(tmp_path / "model"))
    monkeypatch.setenv("SM_OUTPUT_DATA_DIR", str(tmp_path / "output"))
    monkeypatch.setenv("SM_NUM_GPUS", "1")
    monkeypatch.setenv("TRAINING_JOB_NAME", "job-001")
    monkeypatch.setattr(container, "CHECKPOINTS", tmp_path / "checkpoints")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))

    def channel(name, files):
        folder = tmp_path / "input" / name
        fill(folder, files)
        monkeypatch.setenv(f"SM_CHANNEL_{name.upper()}", str(folder))
        return folder

    return channel


NAMES = ("train_json", "val_json", "company_checkpoint", "model_checkpoint", "save_dir", "resume")


def filled(**given):
    args = argparse.Namespace(**{**dict.fromkeys(NAMES), "epochs": 3, **given})
    container.fill_in(args)
    return args


def packed(entries):
    """A .tar.gz of (name or TarInfo, content)."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for entry, content in entries:
            entry = tarfile.TarInfo(entry) if isinstance(entry, str) else entry
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def test_outside_of_a_container_nothing_happens(monkeypatch, capsys, tmp_path):
    fill(tmp_path, {"best/config.json": b"{}"})
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started anew"))
    monkeypatch.setenv("SM_NUM_GPUS", "4")
    assert container.words(None) is None
    assert set(vars(filled()).values()) == {None, 3}
    container.relaunch_on_all_gpus()
    container.report("avg_mae", 1.0)
    container.deliver(tmp_path / "best")
    assert capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_words_given_by_the_caller_are_left(sagemaker):
    assert container.words(["--auxiliary", "two words"]) == ["--auxiliary", "two words"]


def test_channels_fill_what_is_not_given(sagemaker, tmp_path):
    train = sagemaker("train", {"train.json": b"[]", "val.json": b"[]", "test.json": b"[]"})
    company = sagemaker("company", {"model.safetensors": b"", "config.json": b"{}"})
    args = filled()
    assert (args.train_json, args.val_json) == (train / "train.json", train / "val.json")
    assert (args.company_checkpoint, args.model_checkpoint) == (company, None)
    assert (args.save_dir, args.resume, args.epochs) == (tmp_path / "output", None, 3)
    given = filled(train_json="mine", company_checkpoint="theirs", save_dir="here")
    assert (given.train_json, given.company_checkpoint, given.save_dir) == ("mine", "theirs", "here")
    classifier = argparse.Namespace(train_json=None)
    container.fill_in(classifier)
    assert vars(classifier) == {"train_json": train / "train.json"}  # no flag that the script does not have


@pytest.mark.parametrize("file", ["train.json", "augmented_train.json", "records.json"])
def test_records_are_found_by_name_or_alone(file, sagemaker):
    folder = sagemaker("train", {file: b"[]", "a.png": b""})
    assert container.records_file("train") == folder / file


def test_validation_records_have_a_channel_or_lie_with_the_training_ones(sagemaker):
    train = sagemaker("train", {"augmented_train.json": b"[]", "augmented_val.json": b"[]"})
    assert container.records_file("val") == train / "augmented_val.json"
    val = sagemaker("val", {"anything.json": b"[]"})
    assert container.records_file("val") == val / "anything.json"


@pytest.mark.parametrize("files", [{}, {"a.json": b"", "b.json": b""}, {"x_train.json": b"", "y_train.json": b""}])
def test_channels_without_clear_records_are_refused(files, sagemaker):
    sagemaker("train", {"a.png": b"", **files})
    with pytest.raises(UserError, match=r"cannot tell .*; name one of them train\.json"):
        container.records_file("train")


def test_training_records_are_never_taken_for_validation(sagemaker):
    sagemaker("train", {"train.json": b"[]"})
    with pytest.raises(UserError, match=r"name one of them val\.json"):
        filled()


def test_the_model_of_an_earlier_job_is_unpacked_once(sagemaker, monkeypatch):
    files = {"model.safetensors": b"weights", "config.json": b"{}", "checksums.json": b"{}"}
    sagemaker("company", {"model.tar.gz": packed(files.items())})
    sagemaker("model", {"model.tar.gz": packed([("best/model.safetensors", b"others")])})
    folder = filled().company_checkpoint
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files
    monkeypatch.setattr(tarfile, "open", lambda *_: pytest.fail("unpacked again"))
    assert filled(model_checkpoint="x").company_checkpoint == folder


def test_two_models_do_not_mix(sagemaker):
    sagemaker("company", {"model.tar.gz": packed([("model.safetensors", b"company")])})
    sagemaker("model", {"model.tar.gz": packed([("best/model.safetensors", b"model")])})
    args = filled()
    assert (args.company_checkpoint / "model.safetensors").read_bytes() == b"company"
    assert (args.model_checkpoint / "best" / "model.safetensors").read_bytes() == b"model"


@pytest.mark.parametrize("wrap", [dict, lambda files: {"model.tar.gz": packed(files.items())}])
def test_one_weights_file_is_a_checkpoint(wrap, sagemaker):
    sagemaker("company", wrap({"vit_company.pth": b"weights", "notes.txt": b""}))
    assert filled().company_checkpoint.name == "vit_company.pth"


def special(name, kind, target=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        "../outside.txt",
        "a/../../outside.txt",
        special("link", tarfile.SYMTYPE, "../.."),
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("link", tarfile.LNKTYPE, "../../input/company/model.tar.gz"),
        special("pipe", tarfile.FIFOTYPE),
    ],
)
def test_archives_that_reach_out_are_refused(entry, sagemaker, tmp_path):
    sagemaker("company", {"model.tar.gz": packed([("model.safetensors", b""), (entry, b"")])})
    with pytest.raises(UserError, match=r"model\.tar\.gz was not unpacked: "):
        filled()
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not list(tmp_path.rglob("outside.txt"))


def test_absolute_paths_stay_inside(sagemaker, tmp_path):
    target = tmp_path / "absolute.txt"
    sagemaker("company", {"model.tar.gz": packed([("model.safetensors", b""), (str(target), b"x")])})
    filled()
    assert not target.exists()


@pytest.mark.parametrize(
    "content", [b"no archive", packed([("model.safetensors", bytes(9999))])[:60]], ids=["no archive", "cut short"]
)
def test_damaged_archives_are_refused(content, sagemaker):
    sagemaker("company", {"model.tar.gz": content})
    with pytest.raises(UserError, match=r"model\.tar\.gz was not unpacked: \S"):
        filled()


def test_interrupted_jobs_resume_from_their_own_checkpoints(sagemaker, tmp_path):
    (tmp_path / "checkpoints" / "job-002").mkdir(parents=True)
    first = filled()
    assert (first.save_dir, first.resume) == (tmp_path / "checkpoints" / "job-001", None)
    first.save_dir.mkdir()
    again = filled()
    assert (again.save_dir, again.resume) == (first.save_dir, "latest")
    assert filled(resume="elsewhere").resume == "elsewhere"


def test_the_best_model_is_delivered(sagemaker, tmp_path, monkeypatch):
    container.deliver(tmp_path / "best")  # there is none yet
    assert not (tmp_path / "model").exists()
    fill(tmp_path / "best", {"model.safetensors": b"old", "config.json": b"{}"})
    container.deliver(tmp_path / "best")
    fill(tmp_path / "best", {"model.safetensors": b"new"})
    monkeypatch.setenv("RANK", "1")
    container.deliver(tmp_path / "best")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == b"old"
    monkeypatch.setenv("RANK", "0")
    container.deliver(tmp_path / "best")
    delivered = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    assert delivered == {"model.safetensors": b"new", "config.json": b"{}"}


def test_metrics_are_printed_once(sagemaker, capsys, monkeypatch):
    container.report("val_accuracy", 0.91)
    monkeypatch.setenv("RANK", "1")
    container.report("val_accuracy", 0.5)
    assert capsys.readouterr().out == "val_accuracy=0.91;\n"


def test_one_gpu_or_a_launcher_needs_no_relaunch(sagemaker, monkeypatch):
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started anew"))
    container.relaunch_on_all_gpus()
    monkeypatch.setenv("SM_NUM_GPUS", "4")
    monkeypatch.setenv("RANK", "3")
    container.relaunch_on_all_gpus()


def test_relaunch_starts_one_process_a_gpu(sagemaker, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda program, command: started.append((program, command)))
    monkeypatch.setattr(sys, "argv", ["train.py", "--unfreeze_schedule", "20 40", "--uncertainty", ""])
    monkeypatch.setenv("SM_NUM_GPUS", "4")
    container.relaunch_on_all_gpus()
    ((program, command),) = started
    assert [program, *command[:3]] == [sys.executable, sys.executable, "-m", launch.__name__]
    read = launch.launch_command_parser().parse_args(command[3:])
    assert (read.multi_gpu, read.num_processes, read.num_machines) == (True, 4, 1)
    assert [read.training_script, *read.training_script_args] == sys.argv
