//! The rules of containment, one by one, against the cloud in memory.

use std::{collections::BTreeSet, time::Duration};

use cleanroom_cloud::{Change, ErrorKind, GroupId, InstanceState};
use cleanroom_cloud_fake::{
    AWS_MANAGED_KEY, At, CASE_KEY, FakeCloud, Fault, Outcome, Storm, World,
};
use cleanroom_controller::{
    case::{Policy, Step},
    flow::{self, FlowError, Report, Request, status},
    steps::isolate::FORENSIC,
};

use crate::support::{
    assert_contained, everything, respond, respond_or_die, respond_to, run, suspect,
};

/// What a report says is short.
fn shorts(report: &Report) -> String {
    report.shortfalls.iter().map(|s| format!("{}: {} / {}\n", s.step, s.what, s.advice)).collect()
}

async fn respond_with(cloud: &FakeCloud, policy: Policy) -> Report {
    let run = run(cloud, policy, None).await;
    respond_to(&run, &suspect()).await.expect("the suspect is not refused")
}

// Rule 1

#[tokio::test(start_paused = true)]
async fn every_interface_is_closed_before_one_is_opened_to_drop_tracked_flows() {
    let cloud = FakeCloud::new(World::full());
    cloud.set_latency(Duration::from_millis(50));
    respond(&cloud, None).await;
    let world = cloud.world();
    let forensic = world.groups.values().find(|g| g.name == FORENSIC).expect("made").id.clone();
    let first_open =
        cloud.longest_open().iter().map(|s| s.opened).min().expect("flows were dropped");
    for card in &world.machine(&suspect()).expect("there").cards {
        let cut = cloud.changes().into_iter().find(|call| {
            let groups = BTreeSet::from([forensic.clone()]);
            let interface = card.interface.id.clone();
            call.change == Some(Change::SetGroups { interface, groups })
        });
        let cut = cut.expect("the interface was cut").took_effect.expect("it took effect");
        assert!(
            cut < first_open,
            "{} was cut at {cut:?}, opened from {first_open:?}",
            card.interface.id
        );
    }
    for span in cloud.longest_open() {
        let closed = span.closed.expect("nothing is left open");
        assert!(closed - span.opened <= Duration::from_millis(500), "{span:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_fault_but_death_leaves_an_interface_open_for_long() {
    for seed in 0..60 {
        let cloud = FakeCloud::new(World::interfaces(6));
        cloud.set_latency(Duration::from_millis(50));
        cloud.storm(Storm {
            seed,
            percent: 30,
            faults: vec![
                Fault::Refuse(ErrorKind::Throttled),
                Fault::Refuse(ErrorKind::Unreachable),
                Fault::Refuse(ErrorKind::Ambiguous),
                Fault::LoseAnswer,
            ],
            matching: String::new(),
        });
        respond(&cloud, None).await;
        for span in cloud.longest_open() {
            let closed = span.closed.unwrap_or_else(|| panic!("seed {seed}: left open: {span:?}"));
            assert!(closed - span.opened < Duration::from_secs(10), "seed {seed}: {span:?}");
        }
        assert!(cloud.world().is_cut(&suspect()), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_while_an_interface_is_open_ends_with_it_closed() {
    let clean = FakeCloud::new(World::full());
    clean.set_latency(Duration::from_millis(50));
    respond(&clean, None).await;
    let opened = clean.longest_open().iter().map(|s| s.opened).min().expect("opened");

    let cloud = FakeCloud::new(World::full());
    cloud.set_latency(Duration::from_millis(50));
    let until = opened + Duration::from_secs(40);
    cloud.outage_between("ec2:", opened + Duration::from_millis(10), until);
    respond(&cloud, None).await;
    let spans = cloud.longest_open();
    assert!(!spans.is_empty(), "the outage began after the opening");
    for span in spans {
        let closed = span.closed.expect("closed once the outage was over");
        assert!(closed < until + Duration::from_secs(3), "{span:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn at_most_eight_interfaces_are_open_at_a_time_and_ahead_of_other_calls() {
    let cloud = FakeCloud::new(World::interfaces(12));
    cloud.set_latency(Duration::from_millis(50));
    respond(&cloud, None).await;
    let spans = cloud.longest_open();
    assert_eq!(spans.len(), 12);
    for at in spans.iter().map(|s| s.opened) {
        let open = spans.iter().filter(|s| s.opened <= at && s.closed.is_some_and(|c| at < c));
        assert!(open.count() <= 8, "at {at:?}");
    }
    let opening = cloud.changes().into_iter().filter(|call| {
        call.took_effect.is_some_and(|at| spans.iter().any(|s| s.opened == at))
            && matches!(call.change, Some(Change::SetGroups { .. }))
    });
    assert!(opening.clone().count() >= 12 && opening.into_iter().all(|call| call.first));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_opened_while_a_public_address_is_left() {
    let cloud = FakeCloud::new(World::full());
    cloud.faults(
        Fault::Refuse(ErrorKind::Denied),
        At::Matching("disassociate_address".to_owned(), 1),
        1000,
    );
    let report = respond(&cloud, None).await;
    assert_eq!(cloud.longest_open(), [], "an interface with a public address was opened");
    assert!(report.contained && shorts(&report).contains("public address"), "{report:#?}");
}

#[tokio::test(start_paused = true)]
async fn an_interface_that_a_dead_run_left_open_is_closed_by_status() {
    let cloud = FakeCloud::new(World::full());
    cloud.set_latency(Duration::from_millis(50));
    let clean = FakeCloud::new(World::full());
    clean.set_latency(Duration::from_millis(50));
    respond(&clean, None).await;
    let opened = clean.longest_open().iter().map(|s| s.opened).min().expect("opened");
    let call = clean.changes().into_iter().find(|c| c.took_effect == Some(opened) && c.first);
    cloud.fault(Fault::DieAfter, At::Call(call.expect("the opening").n));
    assert!(respond_or_die(&cloud, None).await.is_none(), "the process was to die");
    assert!(cloud.longest_open().iter().any(|s| s.closed.is_none()), "one is open now");

    let next = cloud.restarted();
    let run = run(&next, everything(), None).await;
    let (known, _) = flow::find::cases(&*run.cloud.store, &run.caller).await.expect("cases");
    let status = status::status(&run, &known[0].claim.case).await.expect("status");
    assert!(!status.found_open.is_empty(), "{status:#?}");
    assert!(next.longest_open().iter().all(|s| s.closed.is_some()), "closed by status");
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_somebody_adds_to_the_forensic_group_is_found_and_revoked() {
    let before = World::plain();
    let cloud = FakeCloud::new(before.clone());
    respond(&cloud, None).await;
    cloud.with(|world| {
        let group = world.groups.values_mut().find(|g| g.name == FORENSIC).expect("made");
        group.rules.push(cleanroom_cloud::Rule {
            egress: true,
            all_traffic: false,
            peer: "203.0.113.7/32".to_owned(),
            what: "tcp 443".to_owned(),
        });
        world.refresh();
    });
    let next = cloud.restarted();
    let run = run(&next, everything(), None).await;
    let case = format!("{}-1", suspect()).parse().expect("a case id");
    let seen = status::status(&run, &case).await.expect("status");
    assert_eq!(seen.state, status::State::Drifted, "{seen:#?}");
    respond(&next, None).await;
    assert_contained(&next, &before, "after the drift").await;
}

// Rule 2

#[tokio::test(start_paused = true)]
async fn an_interface_that_refuses_keeps_no_other_from_being_isolated() {
    let mut before = World::full();
    let machine = before.machines.get_mut(&suspect()).expect("there");
    let managed = machine.cards[1].interface.id.clone();
    machine.cards[1].interface.managed = true;
    let cloud = FakeCloud::new(before);
    let report = respond(&cloud, None).await;
    let world = cloud.world();
    let primary = &world.machine(&suspect()).expect("there").cards[0].interface;
    let forensic = world.groups.values().find(|g| g.name == FORENSIC).expect("made").id.clone();
    assert_eq!(primary.groups, BTreeSet::from([forensic]));
    assert!(!report.contained && !report.is_whole());
    assert!(shorts(&report).contains(managed.as_str()), "{}", shorts(&report));
    assert!(report.preserved, "what is independent goes on: {report:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_forensic_group_is_never_recorded_as_original() {
    let mut before = World::plain();
    let vpc = before.vpcs.first().expect("a VPC").clone();
    let ours = GroupId::from("sg-0eeeeeeeeeeeeeeee");
    before.groups.insert(
        ours.clone(),
        cleanroom_cloud::SecurityGroup {
            id: ours.clone(),
            name: FORENSIC.to_owned(),
            vpc,
            tags: Default::default(),
            rules: Vec::new(),
        },
    );
    let machine = before.machines.get_mut(&suspect()).expect("there");
    machine.cards[0].interface.groups = BTreeSet::from([ours.clone()]);
    before.refresh();
    let cloud = FakeCloud::new(before);
    let report = respond(&cloud, None).await;
    assert!(report.contained);
    let ports = cloud.cloud();
    let events =
        cleanroom_controller::journal::read(&*ports.store, &report.case).await.expect("log");
    let ledger = cleanroom_controller::journal::Ledger::of(events.iter().map(|(e, _)| e));
    let recorded = ledger.original.expect("recorded").groups();
    assert!(recorded.values().all(|groups| !groups.contains(&ours)), "{recorded:?}");
}

// Rule 3

#[tokio::test(start_paused = true)]
async fn where_detaching_is_refused_the_group_may_not_end_it() {
    let mut before = World::full();
    for scaling in before.scaling.values_mut() {
        scaling.refuse_detach = Some(ErrorKind::Refused);
    }
    let cloud = FakeCloud::new(before);
    let report = respond(&cloud, None).await;
    tokio::time::sleep(Duration::from_secs(7200)).await;
    let world = cloud.world();
    let machine = world.machine(&suspect()).expect("there");
    assert_eq!(machine.instance.state, InstanceState::Running, "the group ended the evidence");
    let group = &world.scaling_of(&suspect()).expect("still in it").group;
    assert!(
        group.suspended.is_superset(&["ReplaceUnhealthy", "Terminate"].map(str::to_owned).into())
    );
    assert!(report.contained && !report.is_whole(), "{report:#?}");
}

#[tokio::test(start_paused = true)]
async fn it_leaves_the_scaling_group_before_it_is_cut() {
    let cloud = FakeCloud::new(World::full());
    cloud.set_latency(Duration::from_millis(50));
    respond(&cloud, None).await;
    let changes = cloud.changes();
    let at = |name: &str| {
        let call = changes.iter().find(|call| call.text().contains(name));
        call.unwrap_or_else(|| panic!("no {name}")).took_effect.expect("it took effect")
    };
    assert!(at("detach_from_group") < at("set_groups"));
    assert!(at("create_snapshots") < at("set_groups"));
    assert!(at("set_termination_protection") < at("set_groups"));
}

// Rule 4

#[tokio::test(start_paused = true)]
async fn a_spot_instance_is_contained_and_its_missing_guards_are_told() {
    let mut before = World::plain();
    before.machines.get_mut(&suspect()).expect("there").instance.spot = true;
    let cloud = FakeCloud::new(before);
    let report = respond(&cloud, None).await;
    assert!(report.contained && report.preserved);
    assert!(report.notes.iter().any(|n| n.contains("Spot")), "{report:#?}");
}

// Rule 5

#[tokio::test(start_paused = true)]
async fn a_broken_store_prevents_nothing_and_the_log_is_whole_in_the_end() {
    let before = World::full();
    let cloud = FakeCloud::new(before.clone());
    let spool = tempfile::tempdir().expect("a folder");
    cloud.outage("s3:");
    let report = respond(&cloud, Some(spool.path())).await;
    assert!(
        report.contained && report.preserved && report.weak && !report.is_whole(),
        "{report:#?}"
    );
    let world = cloud.world();
    for card in &world.machine(&suspect()).expect("there").cards {
        let tags = &card.interface.tags;
        assert!(tags.keys().any(|k| k.starts_with("cleanroom:groups-")), "{tags:?}");
    }
    cloud.end_outage("s3:");
    let next = cloud.restarted();
    let report = respond(&next, Some(spool.path())).await;
    assert_eq!(report.waiting, 0, "{report:#?}");
    assert_contained(&next, &before, "after the outage of the store").await;
    let left = std::fs::read_dir(spool.path()).expect("the spool").count();
    assert_eq!(left, 0, "the spool is empty once all of it is stored");
}

#[tokio::test(start_paused = true)]
async fn without_a_spool_the_tags_still_hold_what_release_needs() {
    let before = World::full();
    let cloud = FakeCloud::new(before.clone());
    cloud.outage("s3:");
    respond(&cloud, None).await;
    cloud.end_outage("s3:");
    let next = cloud.restarted();
    respond(&next, None).await;
    assert_contained(&next, &before, "from tags alone").await;
}

#[tokio::test(start_paused = true)]
async fn custody_that_is_required_is_required_before_anything_is_changed() {
    let cloud = FakeCloud::new(World::full());
    cloud.outage("s3:");
    let policy = Policy { require_custody: true, ..everything() };
    let run = run(&cloud, policy, None).await;
    let refused = respond_to(&run, &suspect()).await;
    assert!(refused.is_err(), "{refused:?}");
    let done = cloud.changes().into_iter().filter(|c| c.took_effect.is_some()).count();
    assert_eq!(done, 0);
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_down_delays_nothing() {
    let cloud = FakeCloud::new(World::full());
    cloud.outage("sns:");
    let report = respond(&cloud, None).await;
    assert!(report.contained && report.preserved && !report.is_whole());
    assert!(shorts(&report).contains("notify"), "{}", shorts(&report));
    cloud.end_outage("sns:");
    let again = respond(&cloud.restarted(), None).await;
    assert!(again.is_whole(), "{again:#?}");
    assert_eq!(cloud.world().notices.len(), 2, "contained and preserved were told late");
}

// Rule 6

#[tokio::test(start_paused = true)]
async fn elastic_addresses_are_taken_off_and_kept() {
    let before = World::full();
    let cloud = FakeCloud::new(before.clone());
    respond(&cloud, None).await;
    assert_eq!(cloud.world().allocations, before.allocations);
}

// Rule 7

#[tokio::test(start_paused = true)]
async fn a_role_whose_policies_are_full_is_told_with_what_to_do() {
    let mut before = World::full();
    let role = before.roles.values_mut().next().expect("a role");
    role.policies.insert("large".to_owned(), format!("{{\"Version\":\"{}\"}}", "x".repeat(10_100)));
    let cloud = FakeCloud::new(before);
    let report = respond(&cloud, None).await;
    assert!(report.contained && !report.is_whole());
    let shorts = shorts(&report);
    assert!(shorts.contains("10,240") && shorts.contains("revoke --principal"), "{shorts}");
}

// Rule 8

#[tokio::test(start_paused = true)]
async fn a_lost_answer_to_create_snapshots_makes_no_second_set() {
    let before = World::full();
    let cloud = FakeCloud::new(before.clone());
    cloud.fault(Fault::LoseAnswer, At::Matching("ec2:CreateSnapshots".to_owned(), 1));
    let report = respond(&cloud, None).await;
    assert!(report.is_whole(), "{report:#?}");
    let sets =
        cloud.world().snapshots.iter().filter(|s| s.tags.contains_key("cleanroom:set")).count();
    assert_eq!(sets, 3, "one set of three");
}

#[tokio::test(start_paused = true)]
async fn a_set_that_the_log_does_not_tell_of_is_no_evidence_and_is_listed() {
    let cloud = FakeCloud::new(World::full());
    cloud.fault(Fault::DieAfter, At::Matching("ec2:CreateSnapshots".to_owned(), 1));
    // The look-up after the death finds the set; whoever broke in makes one that looks like it, and earlier.
    assert!(respond_or_die(&cloud, None).await.is_none());
    let next = cloud.restarted();
    let ports = next.cloud();
    let first: BTreeSet<_> = next.world().snapshots.iter().map(|s| s.id.to_string()).collect();
    let mut tags = next.world().snapshots[0].tags.clone();
    tags.insert("cleanroom:set".to_owned(), "another".to_owned());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let again = Change::CreateSnapshots { instance: suspect(), description: String::new(), tags };
    ports.hands.apply(&again).await.expect("a second set");
    next.with(|world| {
        for snapshot in world.snapshots.iter_mut().filter(|s| s.tags["cleanroom:set"] == "another")
        {
            snapshot.started.seconds -= 3600;
        }
    });
    let report = respond(&next, None).await;
    assert_eq!(report.snapshots.iter().cloned().collect::<BTreeSet<_>>(), first);
    assert!(report.notes.iter().any(|n| n.contains("not the case's")), "{report:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_fails_for_good_ends_partial_and_deletes_nothing() {
    let mut before = World::full();
    before.failing_volumes = before.volumes.keys().take(1).cloned().collect();
    let cloud = FakeCloud::new(before);
    let report = respond(&cloud, None).await;
    assert!(report.contained && !report.preserved && !report.is_whole(), "{report:#?}");
    assert!(!cloud.changes().iter().any(|c| c.operation.contains("DeleteSnapshot")));
}

// Rule 10

#[tokio::test(start_paused = true)]
async fn snapshots_under_a_key_of_aws_are_copied_to_the_cases_key() {
    let mut before = World::plain();
    for volume in before.volumes.values_mut() {
        volume.encrypted = true;
        volume.key = Some(AWS_MANAGED_KEY.to_owned());
    }
    let cloud = FakeCloud::new(before.clone());
    let report = respond(&cloud, None).await;
    assert!(report.is_whole(), "{report:#?}");
    let copies = cloud.world().snapshots.into_iter().filter(|s| s.key.as_deref() == Some(CASE_KEY));
    assert_eq!(copies.count(), 1);

    let cloud = FakeCloud::new(before);
    let report = respond_with(&cloud, Policy::default()).await;
    assert!(report.notes.iter().any(|n| n.contains("depends on key")), "{report:#?}");
}

// Rule 12

#[tokio::test(start_paused = true)]
async fn two_controllers_at_once_open_one_case_and_record_the_original_once() {
    for seed in 0..20 {
        let before = World::full();
        let one = FakeCloud::new(before.clone());
        one.set_latency(Duration::from_millis(50));
        let two =
            one.as_caller("arn:aws:sts::123456789012:assumed-role/cleanroom-controller/night");
        let later = async {
            tokio::time::sleep(Duration::from_millis(seed * 37)).await;
            respond(&two, None).await
        };
        let (first, second) = tokio::join!(respond(&one, None), later);
        assert_eq!(first.case, second.case);
        assert!(first.contained && second.contained, "{first:#?} {second:#?}");
        assert_contained(&one, &before, &format!("two at once, {} ms apart", seed * 37)).await;
    }
}

// Rule 13

#[tokio::test(start_paused = true)]
async fn a_tag_exempts_only_where_the_settings_say_so() {
    let mut before = World::plain();
    let instance = &mut before.machines.get_mut(&suspect()).expect("there").instance;
    instance.tags.insert("cleanroom:exempt".to_owned(), "true".to_owned());
    instance.tags.insert("cleanroom:case".to_owned(), "i-0fedcba9876543210-weak-7".to_owned());
    let cloud = FakeCloud::new(before.clone());
    let report = respond(&cloud, None).await;
    assert!(
        report.contained && report.case.as_str().starts_with(suspect().as_str()),
        "{report:#?}"
    );

    let policy = Policy { exempt: vec!["cleanroom:exempt=true".to_owned()], ..Policy::default() };
    let cloud = FakeCloud::new(before);
    let run = run(&cloud, policy, None).await;
    let refused = respond_to(&run, &suspect()).await;
    assert!(matches!(refused, Err(FlowError::Refused(_))), "{refused:?}");
    assert_eq!(cloud.changes().len(), 0, "a refusal changes nothing");
}

#[tokio::test(start_paused = true)]
async fn an_instance_of_another_account_is_refused() {
    let mut before = World::plain();
    before.machines.get_mut(&suspect()).expect("there").instance.account = "111122223333".into();
    let cloud = FakeCloud::new(before);
    let run = run(&cloud, everything(), None).await;
    let refused = respond_to(&run, &suspect()).await.expect_err("it is refused");
    assert!(matches!(refused, FlowError::Refused(_)), "{refused:?}");
    assert_eq!(cloud.changes().len(), 0);
}

// Rule 17

#[tokio::test(start_paused = true)]
async fn volumes_that_survive_a_terminated_instance_are_preserved() {
    let mut before = World::full();
    let machine = before.machines.get_mut(&suspect()).expect("there");
    for volume in &mut machine.instance.volumes {
        volume.delete_on_termination = volume.device == "/dev/xvda";
    }
    let own: BTreeSet<_> = machine.instance.volumes.iter().map(|v| v.volume.clone()).collect();
    let cloud = FakeCloud::new(before);
    let run = run(&cloud, everything(), None).await;
    let instance = run.cloud.inventory.get_instance(&suspect()).await.expect("there");
    cloud.with(|world| world.shut_down(&suspect()));
    let request = Request { instance, case: None, reason: None };
    let report = flow::respond(&run, &request).await.expect("not refused");
    let world = cloud.world();
    let kept: BTreeSet<_> = world.snapshots.iter().map(|s| s.volume.clone()).collect();
    let left: BTreeSet<_> = world.volumes.keys().filter(|v| own.contains(*v)).cloned().collect();
    assert!(!left.is_empty() && kept.is_superset(&left), "{kept:?} {left:?} {report:#?}");
}

// The plan

#[tokio::test(start_paused = true)]
async fn a_plan_makes_no_call_that_changes_anything_and_tells_what_respond_does() {
    let cloud = FakeCloud::new(World::full());
    let run = run(&cloud, everything(), None).await;
    let instance = run.cloud.inventory.get_instance(&suspect()).await.expect("there");
    let plan = flow::plan::plan(&run, &instance, None).await.expect("a plan");
    assert_eq!(cloud.changes().len(), 0, "{:?}", cloud.changes());

    respond(&cloud.restarted(), None).await;
    let planned: BTreeSet<_> = plan.entries.iter().map(|e| e.operation).collect();
    let done: BTreeSet<_> = cloud
        .changes()
        .into_iter()
        .filter(|c| c.outcome == Outcome::Done)
        .filter_map(|c| Some(c.change?.operation()))
        .collect();
    // Locks and images need snapshots that a plan does not have; it says so in words.
    let told = ["ec2:LockSnapshot", "ec2:RegisterImage", "ec2:CopySnapshot"];
    let missing: Vec<_> =
        done.into_iter().filter(|d| !planned.contains(d) && !told.contains(d)).collect();
    assert!(missing.is_empty(), "done and not planned: {missing:?}");
    assert!(plan.notes.iter().any(|n| n.contains("locked")), "{:?}", plan.notes);
}

#[tokio::test(start_paused = true)]
async fn steps_that_are_left_out_are_left_out() {
    let cloud = FakeCloud::new(World::full());
    let steps = [Step::Verify, Step::Protect, Step::Snapshot].into();
    let report = respond_with(&cloud, Policy { steps, ..Policy::default() }).await;
    assert!(report.preserved && !report.contained && report.is_whole(), "{report:#?}");
    assert!(!cloud.world().is_cut(&suspect()));
    assert_eq!(cloud.world().notices.len(), 0);
}
