//! A drill that the state machine responds to.

use cleanroom_cloud::{Change, ExecutionState, InstanceState};
use cleanroom_cloud_fake::{FakeCloud, World};
use cleanroom_controller::{
    case::Policy,
    flow::{
        drill::{self, Wanted, clean},
        follow,
    },
};

use super::{Functions, done};
use crate::support::run;

const MACHINE: &str = "arn:aws:states:us-east-1:123456789012:stateMachine:cleanroom-response";
const FUNCTION: &str = "arn:aws:sts::123456789012:assumed-role/cleanroom-step/cleanroom-step";

/// What was terminated or deleted, and by whom, but for the group that opens interfaces for a moment.
fn ended(cloud: &FakeCloud) -> Vec<(String, &'static str)> {
    let ends = |change: &Change| {
        let operation = change.operation();
        let scaffold = operation == "ec2:DeleteSecurityGroup";
        !scaffold && ["Terminate", "Delete"].iter().any(|word| operation.contains(word))
    };
    let changes = cloud.changes().into_iter();
    changes
        .filter_map(|call| {
            let change = call.change.filter(ends)?;
            Some((call.caller, change.operation()))
        })
        .collect()
}

#[test]
fn a_drill_in_the_state_machine_is_deleted_by_the_person_who_began_it_alone() {
    let mut functions = Functions::new(&World::plain(), Policy::default());
    let person = functions.cloud.clone();
    functions.cloud = person.as_caller(FUNCTION);
    let (drill, following) = functions.runtime.block_on(async {
        let run = run(&person, Policy::default(), None).await;
        let name = drill::name(run.clock.now(), &run.nonce);
        let kind = "t3.micro".to_owned();
        let wanted = Wanted { subnet: None, instance_type: kind, image: None, machine: true };
        let proposal = drill::propose(&run, name, wanted).await.expect("an image");
        assert!(proposal.makes.iter().any(|line| line.contains("execution")), "{proposal:#?}");
        let drill = proposal.drill.clone();
        assert!(follow::running(&run, MACHINE, &drill).await.expect("no execution").is_none());
        let instance = drill::launch(&run, &proposal).await.expect("it runs").id;
        let reason = drill::reason(&drill);
        let asked = (Some(&drill), Some(reason.as_str()));
        let following = follow::begin(&run, MACHINE, &instance, asked).await.expect("started");
        let there = follow::running(&run, MACHINE, &drill).await.expect("an answer");
        assert_eq!(there.expect("it runs").instance, instance);
        (drill, following)
    });
    let arn = &following.started.arn;
    let input = person.with(|w| w.executions[arn].execution.input.clone());
    functions.given = serde_json::from_str(&input).expect("JSON");
    assert_eq!(functions.walk().ended, done());
    person.with(|w| w.stop(arn, ExecutionState::Succeeded, None));
    assert_eq!(ended(&person), [], "the functions delete nothing");

    let instance = &following.instance;
    functions.runtime.block_on(async {
        let run = run(&person, Policy::default(), None).await;
        assert!(follow::running(&run, MACHINE, &drill).await.expect("an answer").is_none());
        let times = drill::times(&run, &drill, (instance, 1.0, run.clock.now())).await;
        let times = times.expect("the log");
        assert!(
            times.whole && times.contained.is_some() && times.preserved.is_some(),
            "{times:#?}"
        );
        let remains = clean::look(&run, &drill).await.expect("a drill");
        let cleaned = clean::clean(&run, remains).await.expect("the account answers");
        assert!(cleaned.whole && cleaned.kept.is_empty(), "{cleaned:#?}");
    });
    let ended = ended(&person);
    assert!(ended.len() >= 2 && ended.iter().all(|(who, _)| who != FUNCTION), "{ended:?}");
    person.with(|w| {
        let state = w.machine(instance).map(|m| m.instance.state);
        assert_eq!((state, w.snapshots.len()), (Some(InstanceState::Terminated), 0));
    });
}
