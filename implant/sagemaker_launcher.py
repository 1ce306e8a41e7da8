"""Starts a hyperparameter tuning job on SageMaker over the search spaces of implants/search_spaces.py, with boto3.

    python implant/sagemaker_launcher.py --stage classifier --role arn:aws:iam::123456789012:role/SageMaker \\
        --image_uri URI --train s3://BUCKET/data --output s3://BUCKET/tuning target=model epochs=30
    python implant/sagemaker_launcher.py --stage regression … --company_checkpoint s3://…/model.tar.gz \\
        --model_checkpoint s3://…/model.tar.gz attention_type=triple
    python implant/sagemaker_launcher.py … --dry_run          # prints the request; needs no credentials

NAME=VALUE fixes a flag of the training script and removes it from the search: quoted for several words
("auxiliary=thread_type modality"), without value for a switch (uncertainty=). URI is a PyTorch training container of
SageMaker, or another with the SageMaker training toolkit; it installs requirements.txt and runs the packed source.
"""

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import gzip
import io
import json
import math
import re
import shlex
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import boto3
from botocore import exceptions

from core.args import ArgumentParser, positive_int, script
from core.errors import UserError
from implants.sagemaker_container import CHECKPOINTS
from implants.search_spaces import METRICS, SCRIPTS, SPACES
from implants.tuning import Categorical, Space, number_or_text

PRINTED = {"classifier": "val_accuracy", "regression": "avg_mae"}  # metric in the output of the training scripts
GOALS = {"max": "Maximize", "min": "Minimize"}
NAME = re.compile("[a-zA-Z0-9](-*[a-zA-Z0-9]){0,31}")  # of a tuning job, by the rules of SageMaker
ROLE = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@/-]+")
NO_CREDENTIALS = (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.ProfileNotFound)
BAD_CREDENTIALS = ("ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidClientTokenId")
BAD_CREDENTIALS += ("SignatureDoesNotMatch", "UnrecognizedClientException")
WAYS_OUT = {  # error code -> what the user can do
    "AccessDenied": "ask for this permission, or use another profile",
    "AccessDeniedException": "ask for this permission, or use another profile",
    "NoSuchBucket": "name a bucket of yours in --output",
    "PermanentRedirect": "the bucket of --output lies in another region: give its --region",
    "ResourceInUse": "choose another --job_name",
    "ResourceLimitExceeded": "lower --parallel or --jobs, or ask AWS for a higher quota",
    "ResourceNotFound": "check the job's name and --region",
}


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=tuple(SPACES), required=True, help="training script to tune")
    parser.add_argument("--role", type=_role, required=True, metavar="ARN", help="IAM role of the training jobs")
    parser.add_argument("--image_uri", required=True, metavar="URI", help="image of the training container")
    parser.add_argument("--output", type=_s3, required=True, metavar="S3",
                        help="S3 folder of source, models and checkpoints")  # fmt: skip
    parser.add_argument("--job_name", metavar="NAME",
                        help="name of the tuning job, at most 32 characters (default: implant-STAGE-TIME)")  # fmt: skip
    parser.add_argument("--region", help="AWS region (default: that of the AWS configuration)")
    parser.add_argument("--dry_run", action="store_true", help="print the request as JSON and stop")
    parser.add_argument(
        "fixed", nargs="*", type=_fixed, metavar="NAME=VALUE", help="fixed flags of the training script"
    )
    group = parser.add_argument_group("data")
    group.add_argument("--train", type=_s3, required=True, metavar="S3", help="S3 folder of train.json and images")
    group.add_argument("--val", type=_s3, metavar="S3", help="S3 folder of val.json (default: that of --train)")
    for name in ("company", "model"):
        group.add_argument(f"--{name}_checkpoint", type=_s3, metavar="S3",
                           help=f"model.tar.gz of the {name} classifier (--stage regression)")  # fmt: skip
    group = parser.add_argument_group("search")
    group.add_argument("--jobs", type=positive_int, default=20, help="number of training jobs")
    group.add_argument("--parallel", type=positive_int, default=4, help="number of concurrent training jobs")
    group.add_argument("--early_stopping", action=argparse.BooleanOptionalAction, default=True,
                       help="early stopping of jobs that fall behind the others")  # fmt: skip
    group = parser.add_argument_group("machines")
    group.add_argument("--instance_type", default="ml.g5.xlarge", help="instance type; one process per GPU")
    group.add_argument("--instance_count", type=positive_int, default=1, help="instances per training job: 1")
    group.add_argument("--volume_gb", type=positive_int, default=50, help="disk size of an instance in GB")
    group.add_argument("--max_hours", type=float, default=24.0, help="time limit of a training job in hours")
    group.add_argument("--spot", action="store_true", help="spot instances: cheaper; interrupted jobs resume")
    args = parser.parse_args(argv)
    if args.instance_count > 1:
        parser.error("--instance_count must be 1: take an --instance_type with more GPUs, such as ml.g5.12xlarge")
    if args.parallel > args.jobs:
        parser.error(f"--parallel {args.parallel} is more than --jobs {args.jobs}")
    if not args.max_hours > 0:
        parser.error("--max_hours must be positive")
    return args


def _role(text: str) -> str:
    if not ROLE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text} is not like arn:aws:iam::123456789012:role/NAME")
    return text


def _s3(text: str) -> str:
    if not re.fullmatch("s3://[^/]+(/.*)?", text):
        raise argparse.ArgumentTypeError(f"{text} is not like s3://BUCKET/FOLDER")
    return text


def _fixed(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not re.fullmatch("[a-z][a-z0-9_-]*", name) or name.startswith("sagemaker") or not equals:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE with a flag of the training script for NAME")
    shlex.split(value)  # as in the container; argparse reports open quotes
    return name, value


def main(argv=None):
    args = parse_args(argv)
    name = args.job_name or time.strftime(f"{args.stage}-%y%m%d-%H%M%S", time.gmtime())
    output = args.output.rstrip("/")
    source = f"{output}/{name}/source/sourcedir.tar.gz"
    checkpoints = {"company": args.company_checkpoint, "model": args.model_checkpoint}
    channels = {"train": args.train, "val": args.val, **checkpoints}
    options = [
        "role", "image_uri", "region", "jobs", "parallel", "early_stopping", "instance_type", "volume_gb", "max_hours",
        "spot",
    ]  # fmt: skip
    request = build_tuning_request(
        args.stage, name, source=source, channels={channel: uri for channel, uri in channels.items() if uri},
        output=output, fixed=dict(args.fixed), **{option: getattr(args, option) for option in options},
    )  # fmt: skip
    if args.dry_run:
        print(json.dumps(request, indent=1))
        return
    packed = pack_source(Path(__file__).resolve().parent)
    bucket, _, key = source.removeprefix("s3://").partition("/")
    client, storage = make_client("sagemaker", args.region), make_client("s3", args.region)
    with aws_errors():
        storage.put_object(Bucket=bucket, Key=key, Body=packed)
        client.create_hyper_parameter_tuning_job(**request)
    print(f"started {name}: {args.jobs} training jobs, {args.parallel} at a time; models go to {output}/{name}")
    region = f" --region {args.region}" if args.region else ""
    print(f"python {Path(__file__).resolve().parent.name}/analyze_tuning_results.py --tuning-job-name {name}{region}")


# ------------------------------------------------------------------------------------------------------------- request


def build_tuning_request(
    stage: str, name: str, *, role: str, image_uri: str, source: str, channels: Mapping[str, str], output: str,
    fixed: Mapping[str, str] | None = None, jobs: int = 20, parallel: int = 4, early_stopping: bool = True,
    instance_type: str = "ml.g5.xlarge", volume_gb: int = 50, max_hours: float = 24, spot: bool = False,
    region: str | None = None,
) -> dict:  # fmt: skip
    """Arguments of `create_hyper_parameter_tuning_job` for the search space of `stage` without the flags in `fixed`.

    `source`: S3 address of the packed source; `channels`: name (train, val, company, model) -> S3 address; `output`:
    S3 folder, with a subfolder for the job. Values of hyperparameters are JSON strings, as framework containers expect.
    Raises UserError for an invalid name, missing or unused checkpoints, and an empty search space.
    """
    metric, (_, mode) = PRINTED[stage], METRICS[stage]
    fixed = {flag.replace("-", "_"): value for flag, value in (fixed or {}).items()}
    if not NAME.fullmatch(name):
        raise UserError(f"--job_name {name}: at most 32 letters, digits and hyphens, no hyphen first or last")
    check_checkpoints(stage, channels, fixed)
    spaces = {flag: space for flag, space in SPACES[stage].items() if flag not in fixed}
    if not spaces:
        raise UserError(f"all that --stage {stage} searches is fixed: leave out one of {', '.join(SPACES[stage])}")
    static = {**fixed, "sagemaker_program": SCRIPTS[stage], "sagemaker_submit_directory": source}
    if region:
        static["sagemaker_region"] = region  # of the source
    seconds = math.ceil(max_hours * 3600)
    definition = {
        "StaticHyperParameters": {flag: json.dumps(value) for flag, value in static.items()},
        "AlgorithmSpecification": {
            "TrainingImage": image_uri,
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": metric, "Regex": f"{metric}=([0-9.eE+-]+);"}],
        },
        "RoleArn": role,
        "InputDataConfig": [_channel(channel, uri) for channel, uri in channels.items()],
        "OutputDataConfig": {"S3OutputPath": f"{output}/{name}"},
        "ResourceConfig": {"InstanceType": instance_type, "InstanceCount": 1, "VolumeSizeInGB": volume_gb},
        "StoppingCondition": {"MaxRuntimeInSeconds": seconds},
        "EnableManagedSpotTraining": spot,
    }
    if spot:
        definition["StoppingCondition"]["MaxWaitTimeInSeconds"] = 2 * seconds  # training and waiting
        definition["CheckpointConfig"] = {"S3Uri": f"{output}/{name}/checkpoints", "LocalPath": str(CHECKPOINTS)}
    return {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobConfig": {
            "Strategy": "Bayesian",
            "HyperParameterTuningJobObjective": {"Type": GOALS[mode], "MetricName": metric},
            "ResourceLimits": {"MaxNumberOfTrainingJobs": jobs, "MaxParallelTrainingJobs": parallel},
            "ParameterRanges": parameter_ranges(spaces),
            "TrainingJobEarlyStoppingType": "Auto" if early_stopping else "Off",
        },
        "TrainingJobDefinition": definition,
    }


def parameter_ranges(spaces: Space) -> dict:
    """ParameterRanges of SageMaker for a search space, with numbers as strings."""
    categorical, continuous = [], []
    for flag, space in spaces.items():
        if isinstance(space, Categorical):
            categorical.append({"Name": flag, "Values": [json.dumps(str(choice)) for choice in space.choices]})
        else:
            limits = {"MinValue": str(space.low), "MaxValue": str(space.high)}
            continuous.append({"Name": flag, **limits, "ScalingType": "Logarithmic"})
    return {"CategoricalParameterRanges": categorical, "ContinuousParameterRanges": continuous}


def check_checkpoints(stage: str, channels: Mapping[str, str], fixed: Mapping[str, str]) -> None:
    """Raises UserError for missing and unexpected classifier checkpoints."""
    given = {kind for kind in ("company", "model") if kind in channels}
    if stage == "classifier":
        if given:
            raise UserError(f"--{min(given)}_checkpoint is for --stage regression: leave it out")
        return
    embeddings = fixed.get("embeddings", "dual")
    needed = {"dual": {"company", "model"}, "none": set()}.get(embeddings, {embeddings})
    for kind in sorted(needed - given):
        raise UserError(f"embeddings={embeddings} needs --{kind}_checkpoint, or fix embeddings=none")


def _channel(name: str, uri: str) -> dict:
    place = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": place}}


def pack_source(folder: Path) -> bytes:
    """sourcedir.tar.gz of the project: scripts and package of `folder`, core/ (inside or beside it), requirements.txt.

    The scripts are at the root, as script mode requires. Equal files give equal bytes. Raises UserError without core/
    or requirements.txt.
    """
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*.py")}
    for name in ("core", "requirements.txt"):
        found = next((place / name for place in (folder, folder.parent) if (place / name).exists()), None)
        if found is None:
            raise UserError(f"{folder} has no {name}, inside or beside it: the container needs it")
        modules = found.rglob("*.py") if found.is_dir() else [found]
        files |= {file.relative_to(found.parent).as_posix(): file for file in modules}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, file in sorted(files.items()):
            entry = tarfile.TarInfo(name)  # without owner and time
            content = file.read_bytes()
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(archive.getvalue(), mtime=0)


# ------------------------------------------------------------------------------------------------------------- results


def describe(client, name: str) -> dict:
    """State of a tuning job: name, status, metric, mode ("min" or "max"), jobs (status -> count), reason (of a failure,
    else None). Raises UserError for AWS errors."""
    with aws_errors():
        job = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    objective = job["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]
    return {
        "name": name, "status": job["HyperParameterTuningJobStatus"], "metric": objective["MetricName"],
        "mode": next(mode for mode, goal in GOALS.items() if goal == objective["Type"]),
        "jobs": job.get("TrainingJobStatusCounters", {}), "reason": job.get("FailureReason"),
    }  # fmt: skip


def tuning_results(client, name: str) -> list[dict]:
    """Training jobs of a tuning job, oldest first: name, status, parameters (flag -> number or str), value (latest
    value of the objective, or None) and seconds (of training; None before its end). Raises UserError for AWS errors."""
    with aws_errors():
        pages = client.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(
            HyperParameterTuningJobName=name, SortBy="CreationTime", SortOrder="Ascending"
        )
        jobs = [job for page in pages for job in page["TrainingJobSummaries"]]
    return [
        {
            "name": job["TrainingJobName"],
            "status": job["TrainingJobStatus"],
            "parameters": {flag: parsed(text) for flag, text in job["TunedHyperParameters"].items()},
            "value": job.get("FinalHyperParameterTuningJobObjectiveMetric", {}).get("Value"),
            "seconds": _seconds(job),
        }
        for job in jobs
    ]


def parsed(text: str) -> int | float | str:
    """Value of a hyperparameter: SageMaker returns numbers as strings, and choices in JSON quotes."""
    return number_or_text(json.loads(text) if text.startswith('"') else text)


def _seconds(job: dict) -> float | None:
    start, end = job.get("TrainingStartTime"), job.get("TrainingEndTime")
    return (end - start).total_seconds() if start and end else None


# -------------------------------------------------------------------------------------------------------------- errors


def make_client(service: str, region: str | None = None):
    """Client of boto3. Raises UserError without region or profile."""
    with aws_errors():
        return boto3.Session(region_name=region).client(service)


@contextmanager
def aws_errors() -> Iterator[None]:
    """Context manager that turns errors of boto3 into a one-line UserError with a remedy."""
    try:
        yield
    except (exceptions.BotoCoreError, exceptions.ClientError) as error:
        raise UserError(explain(error)) from error


def explain(error: exceptions.BotoCoreError | exceptions.ClientError) -> str:
    """Error of boto3 in one line, with a remedy."""
    said = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, exceptions.ClientError):
        code = error.response["Error"]["Code"]
        if code in BAD_CREDENTIALS:
            return f"{said}; log in again, or correct AWS_PROFILE or the keys"
        return f"{said}; {WAYS_OUT[code]}" if code in WAYS_OUT else said
    if isinstance(error, NO_CREDENTIALS):
        return f"AWS: {said}; run `aws configure`, or set AWS_PROFILE, or the variables with the keys"
    if isinstance(error, exceptions.NoRegionError):
        return "AWS needs a region: give --region, or set AWS_DEFAULT_REGION"
    return f"AWS: {said}; check the network and --region"


if __name__ == "__main__":
    script(main)
