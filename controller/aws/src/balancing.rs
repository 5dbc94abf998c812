//! Load balancers, new and classic.
//!
//! Purpose: what sends an instance traffic, and taking it out and back in. Touches Elastic Load Balancing only. Never
//! changes a load balancer, a listener or a target group itself.

use aws_sdk_elasticloadbalancing::types::Instance;
use aws_sdk_elasticloadbalancingv2::types::{
    TargetDescription, TargetHealthDescription, TargetHealthStateEnum,
};
use cleanroom_cloud::{
    Change, Classic, CloudError, ErrorKind, Made, Result, Target, TargetGroup, TargetGroupArn,
};

use crate::{clients::Clients, error::fail, iam::foreign, pages};

/// All target groups of the Region.
pub(crate) async fn target_groups(clients: &Clients) -> Result<Vec<TargetGroup>> {
    const OPERATION: &str = "elasticloadbalancing:DescribeTargetGroups";
    // The most a page can hold: the index of a Region is on the way to isolation.
    let stream = clients.elbv2.describe_target_groups().page_size(400).into_paginator().send();
    let groups = pages::all(OPERATION, "", stream).await?;
    Ok(groups
        .into_iter()
        .flat_map(|page| page.target_groups.unwrap_or_default())
        .filter_map(|group| {
            Some(TargetGroup {
                arn: group.target_group_arn?.into(),
                vpc: group.vpc_id.map(Into::into),
                // An instance is what a target is where nothing else is said.
                kind: group.target_type.map_or("instance".into(), |t| t.as_str().to_owned()),
                protocol: group.protocol.map(|p| p.as_str().to_owned()),
            })
        })
        .collect())
}

/// What is registered with a target group, draining targets included.
pub(crate) async fn targets(
    clients: &Clients,
    target_group: &TargetGroupArn,
) -> Result<Vec<Target>> {
    const OPERATION: &str = "elasticloadbalancing:DescribeTargetHealth";
    let answer = clients
        .elbv2
        .describe_target_health()
        .target_group_arn(target_group.as_str())
        .send()
        .await
        .map_err(|e| fail(OPERATION, target_group, e))?;
    let found = answer.target_health_descriptions.unwrap_or_default();
    Ok(found.into_iter().filter_map(translate).collect())
}

/// A target in our own words.
fn translate(description: TargetHealthDescription) -> Option<Target> {
    let target = description.target?;
    // `unhealthy.draining` is not meant: such a target is registered still, and takes no new connections while its
    // health checks fail.
    let draining =
        description.target_health?.state.is_some_and(|s| s == TargetHealthStateEnum::Draining);
    Some(Target { id: target.id?, port: target.port, zone: target.availability_zone, draining })
}

/// All classic load balancers of the Region.
pub(crate) async fn classic_balancers(clients: &Clients) -> Result<Vec<Classic>> {
    const OPERATION: &str = "elasticloadbalancing:DescribeLoadBalancers";
    let stream = clients.elb.describe_load_balancers().page_size(400).into_paginator().send();
    let balancers = pages::all(OPERATION, "", stream).await?;
    Ok(balancers
        .into_iter()
        .flat_map(|page| page.load_balancer_descriptions.unwrap_or_default())
        .filter_map(|balancer| {
            let instances = balancer.instances.unwrap_or_default();
            Some(Classic {
                name: balancer.load_balancer_name?,
                instances: instances
                    .into_iter()
                    .filter_map(|i| i.instance_id?.parse().ok())
                    .collect(),
            })
        })
        .collect())
}

/// Carries out a registration or its end.
pub(crate) async fn apply(clients: &Clients, change: &Change) -> Result<Made> {
    let operation = change.operation();
    match change {
        Change::RegisterTarget { target_group, target } => {
            clients
                .elbv2
                .register_targets()
                .target_group_arn(target_group.as_str())
                .targets(describe(target))
                .send()
                .await
                .map_err(|e| fail(operation, subject(target_group, &target.id), e))?;
        }
        Change::DeregisterTarget { target_group, target } => {
            let answer = clients
                .elbv2
                .deregister_targets()
                .target_group_arn(target_group.as_str())
                .targets(describe(target))
                .send()
                .await;
            match answer.map_err(|e| fail(operation, subject(target_group, &target.id), e)) {
                Err(error) if !is_gone(&error) => return Err(error),
                _ => {}
            }
        }
        Change::RegisterClassic { balancer, instance } => {
            clients
                .elb
                .register_instances_with_load_balancer()
                .load_balancer_name(balancer)
                .instances(Instance::builder().instance_id(instance.as_str()).build())
                .send()
                .await
                .map_err(|e| fail(operation, subject(balancer, instance), e))?;
        }
        Change::DeregisterClassic { balancer, instance } => {
            let answer = clients
                .elb
                .deregister_instances_from_load_balancer()
                .load_balancer_name(balancer)
                .instances(Instance::builder().instance_id(instance.as_str()).build())
                .send()
                .await;
            match answer.map_err(|e| fail(operation, subject(balancer, instance), e)) {
                Err(error) if !is_gone(&error) => return Err(error),
                _ => {}
            }
        }
        other => return Err(foreign(other)),
    }
    Ok(Made::Nothing)
}

/// A registration, for people.
fn subject(balancer: impl std::fmt::Display, target: impl std::fmt::Display) -> String {
    format!("{target} at {balancer}")
}

/// A target as the service takes it.
fn describe(target: &Target) -> TargetDescription {
    TargetDescription::builder()
        .id(&target.id)
        .set_port(target.port)
        .set_availability_zone(target.zone.clone())
        .build()
}

/// A deregistration has reached its end where the target, or all of what it was registered with, is no more. The codes
/// are those of `DeregisterTargets` and `DeregisterInstancesFromLoadBalancer`.
fn is_gone(error: &CloudError) -> bool {
    error.kind == ErrorKind::NotFound
        || matches!(error.code.as_str(), "InvalidTarget" | "InvalidInstance")
}

#[cfg(test)]
mod tests {
    use aws_sdk_elasticloadbalancingv2::types::TargetHealth;

    use super::*;

    fn described(state: TargetHealthStateEnum) -> Option<Target> {
        let target = TargetDescription::builder().id("10.0.0.7").port(80).availability_zone("all");
        translate(
            TargetHealthDescription::builder()
                .target(target.build())
                .target_health(TargetHealth::builder().state(state).build())
                .build(),
        )
    }

    #[test]
    fn only_a_deregistered_target_is_draining() {
        use TargetHealthStateEnum as State;
        for (state, draining) in [
            (State::Draining, true),
            (State::Healthy, false),
            (State::Unused, false),
            (State::UnhealthyDraining, false),
        ] {
            let target = described(state.clone()).expect("a target");
            assert_eq!(target.draining, draining, "{state:?}");
            assert_eq!((target.port, target.zone.as_deref()), (Some(80), Some("all")));
        }
    }

    #[test]
    fn what_is_gone_is_deregistered_and_what_is_refused_is_not() {
        let error = |kind, code: &str| CloudError {
            operation: "elasticloadbalancing:DeregisterTargets".into(),
            resource: String::new(),
            kind,
            code: code.into(),
            message: String::new(),
            request: None,
        };
        for gone in [
            error(ErrorKind::NotFound, "TargetGroupNotFound"),
            error(ErrorKind::NotFound, "LoadBalancerNotFound"),
            error(ErrorKind::Refused, "InvalidTarget"),
            error(ErrorKind::Refused, "InvalidInstance"),
        ] {
            assert!(is_gone(&gone), "{gone}");
        }
        for other in [
            error(ErrorKind::Denied, "AccessDenied"),
            error(ErrorKind::Ambiguous, "TimedOut"),
            error(ErrorKind::Refused, "ValidationError"),
        ] {
            assert!(!is_gone(&other), "{other}");
        }
    }
}
