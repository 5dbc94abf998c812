//! Auto Scaling groups.
//!
//! Purpose: which group an instance is in, how to leave it with the group's capacity kept, and how to come back. Touches
//! Auto Scaling only. Never changes a group's sizes itself, and never suspends or resumes more than it is told.

use aws_sdk_autoscaling::types::AutoScalingGroup;
use cleanroom_cloud::{Change, Made, Membership, Result, ScalingGroup};
use cleanroom_contract::InstanceId;

use crate::{
    clients::Clients,
    error::{fail, missing},
    iam::foreign,
    pages,
};

/// The transition that a hook on termination waits in (Auto Scaling API reference, `LifecycleHook`).
const TERMINATING: &str = "autoscaling:EC2_INSTANCE_TERMINATING";

/// The instance's place in its group; none for an instance in no group.
pub(crate) async fn membership(
    clients: &Clients,
    instance: &InstanceId,
) -> Result<Option<Membership>> {
    const OPERATION: &str = "autoscaling:DescribeAutoScalingInstances";
    let answer = clients
        .autoscaling
        .describe_auto_scaling_instances()
        .instance_ids(instance.as_str())
        .send()
        .await
        .map_err(|e| fail(OPERATION, instance, e))?;
    let found = answer
        .auto_scaling_instances
        .unwrap_or_default()
        .into_iter()
        .find(|i| i.instance_id.as_deref() == Some(instance.as_str()));
    Ok(found.and_then(|i| {
        Some(Membership {
            group: i.auto_scaling_group_name?,
            state: i.lifecycle_state.unwrap_or_default(),
            protected: i.protected_from_scale_in.unwrap_or(false),
        })
    }))
}

/// One group, with its hooks on termination.
pub(crate) async fn scaling_group(clients: &Clients, name: &str) -> Result<ScalingGroup> {
    const OPERATION: &str = "autoscaling:DescribeAutoScalingGroups";
    let stream = clients
        .autoscaling
        .describe_auto_scaling_groups()
        .auto_scaling_group_names(name)
        .into_paginator()
        .send();
    let (groups, hooks) =
        tokio::try_join!(pages::all(OPERATION, name, stream), termination_hooks(clients, name))?;
    let group = groups
        .into_iter()
        .flat_map(|page| page.auto_scaling_groups.unwrap_or_default())
        .find(|g| g.auto_scaling_group_name.as_deref() == Some(name))
        .ok_or_else(|| missing(OPERATION, name))?;
    Ok(translate(name, group, hooks))
}

/// The names of a group's hooks on termination.
async fn termination_hooks(clients: &Clients, group: &str) -> Result<Vec<String>> {
    const OPERATION: &str = "autoscaling:DescribeLifecycleHooks";
    let answer = clients
        .autoscaling
        .describe_lifecycle_hooks()
        .auto_scaling_group_name(group)
        .send()
        .await
        .map_err(|e| fail(OPERATION, group, e));
    let hooks = match answer {
        Ok(answer) => answer.lifecycle_hooks.unwrap_or_default(),
        // No such group: the other call says so in the words of the port.
        Err(error) if error.code == "ValidationError" => Vec::new(),
        Err(error) => return Err(error),
    };
    Ok(hooks
        .into_iter()
        .filter(|hook| hook.lifecycle_transition.as_deref() == Some(TERMINATING))
        .filter_map(|hook| hook.lifecycle_hook_name)
        .collect())
}

/// A group in our own words.
fn translate(name: &str, group: AutoScalingGroup, termination_hooks: Vec<String>) -> ScalingGroup {
    let mixed = || group.mixed_instances_policy?.launch_template?.launch_template_specification;
    let template = group.launch_template.or_else(mixed);
    let instances = group.instances.unwrap_or_default();
    ScalingGroup {
        name: name.to_owned(),
        suspended: group
            .suspended_processes
            .unwrap_or_default()
            .into_iter()
            .filter_map(|p| p.process_name)
            .collect(),
        termination_hooks,
        size: (
            group.min_size.unwrap_or(0),
            group.desired_capacity.unwrap_or(0),
            group.max_size.unwrap_or(0),
        ),
        instances: instances
            .into_iter()
            .filter_map(|i| {
                let state = i.lifecycle_state.map(|s| s.as_str().to_owned()).unwrap_or_default();
                let id = i.instance_id?.parse().ok()?;
                Some((id, state, i.health_status.unwrap_or_default()))
            })
            .collect(),
        launch_template: template.and_then(|t| {
            // Without a version a group uses the default one.
            let version = t.version.unwrap_or_else(|| "$Default".to_owned());
            Some((t.launch_template_id.or(t.launch_template_name)?, version))
        }),
    }
}

/// Carries out a change of an instance's membership or of a group's processes.
pub(crate) async fn apply(clients: &Clients, change: &Change) -> Result<Made> {
    let operation = change.operation();
    let scaling = &clients.autoscaling;
    let subject = change.resource();
    match change {
        Change::DetachFromGroup { instance, group } => detach(clients, instance, group).await?,
        Change::AttachToGroup { instance, group } => attach(clients, instance, group).await?,
        Change::SetScaleInProtection { instance, group, on } => {
            scaling
                .set_instance_protection()
                .instance_ids(instance.as_str())
                .auto_scaling_group_name(group)
                .protected_from_scale_in(*on)
                .send()
                .await
                .map_err(|e| fail(operation, subject, e))?;
        }
        // Without names, these two calls mean every process of the group.
        Change::SuspendProcesses { processes, .. } | Change::ResumeProcesses { processes, .. }
            if processes.is_empty() => {}
        Change::SuspendProcesses { group, processes } => {
            scaling
                .suspend_processes()
                .auto_scaling_group_name(group)
                .set_scaling_processes(Some(processes.iter().cloned().collect()))
                .send()
                .await
                .map_err(|e| fail(operation, subject, e))?;
        }
        Change::ResumeProcesses { group, processes } => {
            scaling
                .resume_processes()
                .auto_scaling_group_name(group)
                .set_scaling_processes(Some(processes.iter().cloned().collect()))
                .send()
                .await
                .map_err(|e| fail(operation, subject, e))?;
        }
        Change::Heartbeat { instance, group, hook } => {
            scaling
                .record_lifecycle_action_heartbeat()
                .instance_id(instance.as_str())
                .auto_scaling_group_name(group)
                .lifecycle_hook_name(hook)
                .send()
                .await
                .map_err(|e| fail(operation, subject, e))?;
        }
        other => return Err(foreign(other)),
    }
    Ok(Made::Nothing)
}

/// Takes an instance out of its group and leaves the desired capacity, so that the group replaces it.
async fn detach(clients: &Clients, instance: &InstanceId, group: &str) -> Result<()> {
    let answer = clients
        .autoscaling
        .detach_instances()
        .instance_ids(instance.as_str())
        .auto_scaling_group_name(group)
        .should_decrement_desired_capacity(false)
        .send()
        .await
        .map_err(|e| fail("autoscaling:DetachInstances", instance, e));
    match answer {
        Err(error) if error.code == "ValidationError" => {
            // The same code stands for an instance that is not in the group, as after an answer that was lost,
            // and for one that may not leave it now. Sentences change: ask where it is.
            match membership(clients, instance).await? {
                Some(place) if place.group == group && !is_leaving(&place.state) => Err(error),
                _ => Ok(()),
            }
        }
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

/// Whether a lifecycle state is one of an instance that leaves its group alive (`Detaching`, `Detached`).
fn is_leaving(state: &str) -> bool {
    state.starts_with("Detach")
}

/// Puts an instance into a group, which raises the desired capacity by one: sent once only.
async fn attach(clients: &Clients, instance: &InstanceId, group: &str) -> Result<()> {
    let answer = clients
        .autoscaling_once
        .attach_instances()
        .instance_ids(instance.as_str())
        .auto_scaling_group_name(group)
        .send()
        .await
        .map_err(|e| fail("autoscaling:AttachInstances", instance, e));
    match answer {
        Err(error) if error.code == "ValidationError" => {
            match membership(clients, instance).await? {
                Some(place) if place.group == group && !is_leaving(&place.state) => Ok(()),
                _ => Err(error),
            }
        }
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_autoscaling::types::{
        Instance, LaunchTemplate, LaunchTemplateSpecification, LifecycleState,
        MixedInstancesPolicy, SuspendedProcess,
    };

    use super::*;
    use crate::canned::canned;

    fn template(version: Option<&str>) -> LaunchTemplateSpecification {
        LaunchTemplateSpecification::builder()
            .launch_template_id("lt-0123456789abcdef0")
            .launch_template_name("web")
            .set_version(version.map(str::to_owned))
            .build()
    }

    #[test]
    fn a_group_is_told_in_our_words() {
        let group = AutoScalingGroup::builder()
            .min_size(1)
            .desired_capacity(2)
            .max_size(3)
            .suspended_processes(SuspendedProcess::builder().process_name("Terminate").build())
            .instances(
                Instance::builder()
                    .instance_id("i-0123456789abcdef0")
                    .lifecycle_state(LifecycleState::InService)
                    .health_status("Healthy")
                    .build(),
            )
            .launch_template(template(None))
            .build();
        let group = translate("web", group, vec!["drain".into()]);
        assert_eq!(group.size, (1, 2, 3));
        assert_eq!(group.suspended.into_iter().collect::<Vec<_>>(), ["Terminate"]);
        assert_eq!(group.termination_hooks, ["drain"]);
        let id = "i-0123456789abcdef0".parse().expect("an id");
        assert_eq!(group.instances, [(id, "InService".to_owned(), "Healthy".to_owned())]);
        let expected = ("lt-0123456789abcdef0".to_owned(), "$Default".to_owned());
        assert_eq!(group.launch_template, Some(expected));
    }

    #[test]
    fn the_template_of_a_mixed_group_is_found_within_its_policy() {
        let inner =
            LaunchTemplate::builder().launch_template_specification(template(Some("7"))).build();
        let policy = MixedInstancesPolicy::builder().launch_template(inner).build();
        let group = AutoScalingGroup::builder().mixed_instances_policy(policy).build();
        let expected = ("lt-0123456789abcdef0".to_owned(), "7".to_owned());
        assert_eq!(translate("web", group, Vec::new()).launch_template, Some(expected));
        let none = AutoScalingGroup::builder().launch_configuration_name("old").build();
        assert_eq!(translate("web", none, Vec::new()).launch_template, None);
    }

    /// What Auto Scaling says where an instance is in a group, in this state.
    fn place(state: &str) -> String {
        let place = if state.is_empty() {
            String::new()
        } else {
            format!(
                "<member><InstanceId>i-0123456789abcdef0</InstanceId>\
                 <AutoScalingGroupName>web</AutoScalingGroupName>\
                 <LifecycleState>{state}</LifecycleState></member>"
            )
        };
        format!(
            "<DescribeAutoScalingInstancesResponse><DescribeAutoScalingInstancesResult>\
             <AutoScalingInstances>{place}</AutoScalingInstances>\
             </DescribeAutoScalingInstancesResult></DescribeAutoScalingInstancesResponse>"
        )
    }

    const REFUSAL: &str = "<ErrorResponse><Error><Code>ValidationError</Code>\
                           <Message>no</Message></Error></ErrorResponse>";

    /// Whether a change that is refused has reached its end where the instance is in this state.
    async fn ends(change: &Change, state: &'static str) -> bool {
        let canned = canned(None, move |request, _| {
            if request.contains("Action=DescribeAutoScalingInstances") {
                (200, place(state))
            } else {
                (400, REFUSAL.to_owned())
            }
        });
        let result = apply(&canned.clients, change).await;
        if let Err(error) = &result {
            assert_eq!(
                (error.operation.as_str(), error.message.as_str()),
                (change.operation(), "no")
            );
        }
        result.is_ok()
    }

    #[tokio::test]
    async fn a_refused_move_is_judged_by_where_the_instance_is() {
        let instance: InstanceId = "i-0123456789abcdef0".parse().expect("an id");
        let detach = Change::DetachFromGroup { instance: instance.clone(), group: "web".into() };
        let attach = Change::AttachToGroup { instance: instance.clone(), group: "web".into() };
        for (state, detached) in
            [("", true), ("Detaching", true), ("InService", false), ("Terminating:Wait", false)]
        {
            assert_eq!(ends(&detach, state).await, detached, "detach {state:?}");
            assert_eq!(ends(&attach, state).await, !detached, "attach {state:?}");
        }
        let elsewhere = Change::DetachFromGroup { instance, group: "other".into() };
        assert!(ends(&elsewhere, "InService").await, "it is in no such group");
    }

    #[tokio::test]
    async fn no_processes_are_never_all_processes() {
        let canned = canned(None, |_, _| (500, String::new()));
        let (group, processes) = ("web".to_owned(), std::collections::BTreeSet::new());
        let suspend =
            Change::SuspendProcesses { group: group.clone(), processes: processes.clone() };
        let resume = Change::ResumeProcesses { group, processes };
        for change in [suspend, resume] {
            assert_eq!(apply(&canned.clients, &change).await, Ok(Made::Nothing));
        }
        assert_eq!(canned.sent(), [""; 0]);
    }
}
