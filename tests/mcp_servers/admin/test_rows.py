"""Each row of the catalogue against moto's AWS with its permissions enforced, through a served hub and the official client."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import pytest

from mcp_servers.admin import catalogue
from mcp_servers.admin.catalogue.row import Row
from mcp_servers.admin.redaction import REDACTED
from tests.counterparts.aws import ACCOUNT, REGION, Cloud
from tests.mcp_servers.hub.conftest import Hub, error_of

# Planted wherever AWS keeps text of people's; in pieces, so that no scanner takes them for real ones.
SECRETS = {
    "key": "AKIA" + "IOSFODNN7EXAMPLE",
    "token": "ghp_" + "a1B2c3D4" * 5,
    "url": "postgres://app:" + "hunter2pass" + "@db.internal/app",
    "word": "correct-horse-battery",
}
TAGS = {"Name": "quay", "DB_PASSWORD": SECRETS["word"], "note": f"use {SECRETS['token']}", "dsn_of": SECRETS["url"]}
TAG_LIST = [{"Key": key, "Value": value} for key, value in TAGS.items()]

Make = Callable[[Cloud], str]


def subnets(cloud: Cloud) -> list[str]:
    found: list[str] = [s["SubnetId"] for s in cloud.client("ec2").describe_subnets()["Subnets"]]
    return found


def instance(cloud: Cloud) -> str:
    ec2 = cloud.client("ec2")
    image = ec2.describe_images()["Images"][0]["ImageId"]
    made = ec2.run_instances(
        ImageId=image,
        MinCount=1,
        MaxCount=1,
        UserData=f"export PASSWORD={SECRETS['word']}",
        TagSpecifications=[{"ResourceType": "instance", "Tags": TAG_LIST}],
    )
    found: str = made["Instances"][0]["InstanceId"]
    return found


def vpc(cloud: Cloud) -> str:
    ec2 = cloud.client("ec2")
    found: str = ec2.create_vpc(CidrBlock="10.7.0.0/16")["Vpc"]["VpcId"]
    ec2.create_tags(Resources=[found], Tags=TAG_LIST)
    return found


def security_group(cloud: Cloud) -> str:
    made = cloud.client("ec2").create_security_group(GroupName="gate", Description=f"key {SECRETS['key']}")
    found: str = made["GroupId"]
    return found


def scaling_group(cloud: Cloud) -> str:
    scaling = cloud.client("autoscaling")
    image = cloud.client("ec2").describe_images()["Images"][0]["ImageId"]
    scaling.create_launch_configuration(LaunchConfigurationName="lc", ImageId=image, InstanceType="t3.micro")
    scaling.create_auto_scaling_group(
        AutoScalingGroupName="wardens",
        LaunchConfigurationName="lc",
        MinSize=0,
        MaxSize=2,
        AvailabilityZones=[f"{REGION}a"],
        Tags=[{**tag, "PropagateAtLaunch": True} for tag in TAG_LIST],
    )
    return "wardens"


def ecs_cluster(cloud: Cloud) -> str:
    cloud.client("ecs").create_cluster(clusterName="quay")
    return "quay"


def ecs_service(cloud: Cloud) -> str:
    ecs = cloud.client("ecs")
    ecs.create_cluster(clusterName="default")
    secret = [{"name": "PASSWORD", "value": SECRETS["word"]}]
    ecs.register_task_definition(
        family="npc", containerDefinitions=[{"name": "npc", "image": "x", "memory": 64, "environment": secret}]
    )
    ecs.create_service(cluster="default", serviceName="npc-loop", taskDefinition="npc", desiredCount=2)
    return "npc-loop"


def eks_cluster(cloud: Cloud) -> str:
    role = f"arn:aws:iam::{ACCOUNT}:role/eks"
    cloud.client("eks").create_cluster(
        name="studio", roleArn=role, resourcesVpcConfig={"subnetIds": subnets(cloud)[:2]}, tags=TAGS
    )
    return "studio"


def cache_cluster(cloud: Cloud) -> str:
    cloud.client("elasticache").create_cache_cluster(
        CacheClusterId="hot-state", Engine="redis", CacheNodeType="cache.t3.micro", NumCacheNodes=1
    )
    return "hot-state"


def load_balancer(cloud: Cloud) -> str:
    cloud.client("elbv2").create_load_balancer(Name="front", Subnets=subnets(cloud)[:2])
    return "front"


def iam_role(cloud: Cloud) -> str:
    trust = {
        "Version": "2012-10-17",
        "Statement": [{"Condition": {"StringEquals": {"sts:ExternalId": SECRETS["word"]}}}],
    }
    cloud.client("iam").create_role(
        RoleName="npc-writer",
        AssumeRolePolicyDocument=json.dumps(trust),
        Description=f"password={SECRETS['word']}",
        Tags=TAG_LIST,
    )
    return "npc-writer"


def function(cloud: Cloud) -> str:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("f.py", "def f(a, b): ...")
    cloud.client("lambda").create_function(
        FunctionName="award",
        Runtime="python3.11",
        Role=f"arn:aws:iam::{ACCOUNT}:role/reader",
        Handler="f.f",
        Code={"ZipFile": packed.getvalue()},
        Description=f"calls {SECRETS['url']}",
        Environment={"Variables": {"STRIPE_KEY": SECRETS["word"], "STAGE": "live"}},
    )
    return "award"


def database(cloud: Cloud) -> str:
    cloud.client("rds").create_db_instance(
        DBInstanceIdentifier="truth",
        Engine="postgres",
        DBInstanceClass="db.t3.micro",
        AllocatedStorage=20,
        MasterUsername="master",
        MasterUserPassword=SECRETS["word"],
        Tags=TAG_LIST,
    )
    return "truth"


def bucket(cloud: Cloud) -> str:
    cloud.client("s3", "us-east-1").create_bucket(Bucket="assets-of-the-studio")
    cloud.client("s3", "us-east-1").create_bucket(Bucket="assets-of-the-studio-2")
    return "assets-of-the-studio"


def endpoint(cloud: Cloud) -> str:
    sagemaker = cloud.client("sagemaker")
    role = f"arn:aws:iam::{ACCOUNT}:role/reader"
    sagemaker.create_model(ModelName="m", ExecutionRoleArn=role, PrimaryContainer={"Image": "x"})
    variant = {"VariantName": "a", "ModelName": "m", "InitialInstanceCount": 1, "InstanceType": "ml.m5.large"}
    sagemaker.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="bronze", EndpointConfigName="c")
    return "bronze"


def alarm(cloud: Cloud) -> str:
    cloud.client("cloudwatch").put_metric_alarm(
        AlarmName="gold-p95",
        ComparisonOperator="GreaterThanThreshold",
        EvaluationPeriods=1,
        MetricName="p95",
        Namespace="Studio",
        Period=60,
        Statistic="Average",
        Threshold=16.0,
        AlarmDescription=f"page with {SECRETS['token']}",
    )
    return "gold-p95"


def trail(cloud: Cloud) -> str:
    cloud.client("s3", "us-east-1").create_bucket(Bucket="audit-log")
    cloud.client("cloudtrail").create_trail(Name="audit", S3BucketName="audit-log")
    return "audit"


def costs(cloud: Cloud) -> str:
    group = {"Keys": ["Amazon EC2"], "Metrics": {"UnblendedCost": {"Amount": "12.5", "Unit": "USD"}}}
    small = {"Keys": [f"AWS {SECRETS['key']}"], "Metrics": {"UnblendedCost": {"Amount": "3", "Unit": "USD"}}}
    month = {"TimePeriod": {"Start": "2026-10-01", "End": "2026-11-01"}, "Estimated": False, "Groups": [small, group]}
    results = [{"ResultsByTime": [month], "DimensionValueAttributes": []} for _ in range(3)]
    cloud.post("static/ce/cost-and-usage-results", json.dumps({"results": results}).encode())
    return "2026-10-01"


MADE: dict[str, Make] = {
    "autoscaling groups": scaling_group,
    "ce costs": costs,
    "cloudtrail trails": trail,
    "cloudwatch alarms": alarm,
    "ec2 instances": instance,
    "ec2 security_groups": security_group,
    "ec2 vpcs": vpc,
    "ecs clusters": ecs_cluster,
    "ecs services": ecs_service,
    "eks clusters": eks_cluster,
    "elasticache clusters": cache_cluster,
    "elbv2 load_balancers": load_balancer,
    "iam roles": iam_role,
    "lambda functions": function,
    "rds instances": database,
    "s3 buckets": bucket,
    "sagemaker endpoints": endpoint,
}
ROWS = [row for row in catalogue.ROWS if row.checked == "runs"]
# Where a secret was planted in what is shown, so that its place must say so.
SHOWN_REDACTED = {
    "autoscaling groups",
    "ce costs",
    "ec2 instances",
    "ec2 security_groups",
    "ec2 vpcs",
    "eks clusters",
} | {
    "iam roles",
    "lambda functions",
    "rds instances",
}
IDENTIFIED = {"ecs services": "default/npc-loop", "ce costs": "2026-10"}


def test_every_row_that_is_said_to_run_is_run_here_and_no_other() -> None:
    assert sorted(MADE) == [row.name for row in ROWS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_a_row_finds_what_is_there_shows_no_secret_and_needs_its_permission(
    row: Row, hub: Hub, cloud: Cloud
) -> None:
    found = MADE[row.name](cloud)
    cloud.enforce()
    asked = {"service": row.service, "resource": row.resource}
    one = asked | {"identifier": IDENTIFIED.get(row.name, found)}

    async with hub.client("person:anna", "sre") as anna, hub.client("person:bob", "sre") as bob:
        for arguments in (one, asked):
            told = await anna.call_tool("query_aws_resource", arguments)
            assert not told.is_error, told.structured_content
            page: Any = told.structured_content
            assert found in [item["id"] for item in page["items"]]
            assert len(page["items"]) == 1 or arguments is asked
            assert (page["account"], page["region"]) == (ACCOUNT, "global" if row.everywhere else REGION)
            whole = told.model_dump_json()
            assert [name for name, secret in SECRETS.items() if secret in whole] == []
            assert (REDACTED in whole) is (row.name in SHOWN_REDACTED)

        for operation in row.operations():
            cloud.role("almost", set(catalogue.actions()) - {operation.action})
            needing = asked if operation is row.listing else one
            refused = error_of(await bob.call_tool("query_aws_resource", needing))
            assert (refused["code"], refused.get("iam_action")) == ("denied", operation.action), refused
            assert operation.action in refused["message"]
            assert ACCOUNT not in json.dumps(refused)
