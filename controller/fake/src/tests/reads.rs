//! Worlds as built, and the reads that are more than a look-up.

use cleanroom_cloud::{
    EventQuery, Facts as _, InstanceQuery, Inventory as _, Posture as _, Question,
};

use super::*;

#[tokio::test(start_paused = true)]
async fn worlds_hold_what_they_promise() {
    let plain = FakeCloud::new(World::plain());
    let interfaces = plain.interfaces(&suspect()).await.expect("listed");
    assert_eq!((interfaces.len(), interfaces[0].public.len()), (1, 0));
    assert_eq!(plain.attached_volumes(&suspect()).await.expect("listed").len(), 1);
    assert_eq!(plain.membership(&suspect()).await, Ok(None));

    let full = FakeCloud::new(World::full());
    assert_eq!(full.attached_volumes(&suspect()).await.expect("listed").len(), 3);
    let interfaces = full.interfaces(&suspect()).await.expect("listed");
    assert_eq!((interfaces.len(), interfaces[0].public.len()), (2, 1));
    assert_ne!(interfaces[0].groups, interfaces[1].groups);
    assert_eq!(full.auto_public_address(&interfaces[0].id).await, Ok(true));
    assert_eq!(full.scaling_group("web").await.expect("there").instances.len(), 2);

    let four = FakeCloud::new(World::interfaces(4));
    let groups: BTreeSet<_> = four
        .interfaces(&suspect())
        .await
        .expect("listed")
        .into_iter()
        .flat_map(|i| i.groups)
        .collect();
    assert_eq!(groups.len(), 4);

    let fleet = World::fleet(300);
    let addresses: BTreeSet<_> =
        fleet.machines.values().flat_map(|m| m.cards[0].interface.private.clone()).collect();
    assert_eq!((fleet.machines.len(), addresses.len(), fleet.volumes.len()), (300, 300, 300));
    assert_eq!(fleet.scaling["web"].group.instances.len(), 10);
    assert!(fleet.machines.keys().all(|id| id.as_str().len() == 19));
}

#[tokio::test(start_paused = true)]
async fn instances_are_found_as_people_name_them() {
    let fake = FakeCloud::new(World::full());
    for query in [
        InstanceQuery::Id(suspect()),
        InstanceQuery::Name("web-1".into()),
        InstanceQuery::Address("203.0.113.25".into()),
        InstanceQuery::Address("10.0.1.10".into()),
    ] {
        let found = fake.find_instances(&query).await.expect("asked");
        assert_eq!(
            found.iter().map(|i| i.id.clone()).collect::<Vec<_>>(),
            [suspect()],
            "{query:?}"
        );
    }
    fake.with(|w| w.terminate(&suspect()));
    let by_name = fake.find_instances(&InstanceQuery::Name("web-1".into())).await;
    assert!(by_name.expect("asked").is_empty());
    assert_eq!(fake.find_instances(&InstanceQuery::Id(suspect())).await.expect("asked").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn events_come_in_pages_newest_first() {
    let fake = FakeCloud::new(World::full());
    fake.with(|w| {
        let like = w.events[0].clone();
        for n in 0..60 {
            let mut more = like.clone();
            more.event.time.seconds -= n;
            w.events.push(more);
        }
    });
    let query = EventQuery::Resource(INSTANCE.to_owned());
    let first = fake.events(&query, None).await.expect("read");
    let rest = fake.events(&query, first.next.as_deref()).await.expect("read");
    assert_eq!((first.events.len(), rest.events.len(), rest.next), (50, 12, None));
    let all: Vec<_> = first.events.iter().chain(&rest.events).map(|e| e.time).collect();
    assert!(all.is_sorted_by(|a, b| a >= b));
    let session =
        fake.events(&EventQuery::Username(INSTANCE.to_owned()), None).await.expect("read");
    assert_eq!(session.events[0].name, "CreateAccessKey");
}

#[tokio::test(start_paused = true)]
async fn facts_are_json_of_the_state_or_missing() {
    let fake = FakeCloud::new(World::full());
    let question = Question::Instance { instance: suspect() };
    let answers = fake.ask(&question).await.expect("answered");
    let json: serde_json::Value = serde_json::from_slice(&answers[0].bytes).expect("JSON");
    assert_eq!(
        (json["id"].as_str(), answers[0].operation.as_str()),
        (Some(INSTANCE), "ec2:DescribeInstances")
    );
    let screenshot = Question::ConsoleScreenshot { instance: suspect() };
    let extensions: Vec<_> =
        fake.ask(&screenshot).await.expect("answered").iter().map(|a| a.extension).collect();
    assert_eq!(extensions, ["json", "jpg"]);
    fake.with(|w| w.unanswered.insert(screenshot.file_name(), ErrorKind::Unsupported));
    assert_eq!(kind(fake.ask(&screenshot).await), ErrorKind::Unsupported);
    let no_role = Question::Role { role: "no-role".into() };
    assert_eq!(kind(fake.ask(&no_role).await), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn posture_is_what_was_set() {
    let fake = FakeCloud::new(World::plain());
    assert!(fake.cloud().posture.bucket().await.expect("read").object_lock);
    fake.with(|w| {
        w.setup.denied.insert("ec2:LockSnapshot".into());
        w.setup.guardduty = false;
        w.setup.flow_logs.clear();
    });
    let actions = ["ec2:LockSnapshot".to_owned(), "ec2:CreateTags".to_owned()];
    let allowed: Vec<_> =
        fake.permissions(&actions).await.expect("simulated").iter().map(|p| p.allowed).collect();
    assert_eq!(allowed, [false, true]);
    assert_eq!(fake.guardduty().await, Ok(false));
    assert_eq!(fake.flow_logs().await, Ok(vec![("vpc-0123456789abcdef0".to_owned(), false)]));
}
