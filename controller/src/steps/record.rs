//! Everything that the cloud knows of the instance, as the cloud told it.
//!
//! Asks, stores each answer byte for byte below `cases/<case>/record/`, and logs its digest. What is denied or not
//! offered is recorded as missing, with the error, and stops nothing. Reads the cloud, writes the store or the spool.

use std::collections::BTreeMap;

use cleanroom_cloud::{Answer, CloudError, EventQuery, Put, Question};
use cleanroom_contract::InstanceId;
use futures_util::{StreamExt as _, future::join_all, stream};

use super::revoke::not_cut::{Survivor, survivors};
use crate::{
    case::{Case, Shortfall, Step},
    journal::{
        digest,
        event::{Body, Exhibit},
    },
    original::Original,
};

/// How long CloudTrail may take to show an event, with some to spare, in seconds.
const TRAIL_LAG: i64 = 20 * 60;

/// The attributes that EC2 tells one by one (`DescribeInstanceAttribute`).
const ATTRIBUTES: [&str; 14] = [
    "instanceType",
    "kernel",
    "ramdisk",
    "userData",
    "disableApiTermination",
    "disableApiStop",
    "instanceInitiatedShutdownBehavior",
    "rootDeviceName",
    "blockDeviceMapping",
    "productCodes",
    "sourceDestCheck",
    "groupSet",
    "ebsOptimized",
    "enaSupport",
];

/// What to ask about an instance that was like this.
#[must_use]
pub fn questions(original: &Original) -> Vec<Question> {
    use Question as Q;
    let id = || original.instance.id.clone();
    let i = &original.instance;
    let mut all = vec![
        Q::Instance { instance: id() },
        Q::InstanceStatus { instance: id() },
        Q::ConsoleOutput { instance: id() },
        Q::ConsoleScreenshot { instance: id() },
        Q::Interfaces { instance: id() },
        Q::Volumes { instance: id() },
        Q::Addresses { instance: id() },
        Q::ProfileAssociations { instance: id() },
        Q::ScalingInstance { instance: id() },
        Q::Findings { instance: id() },
        Q::Image { image: i.image.to_string() },
        Q::InstanceType { name: i.instance_type.clone() },
    ];
    all.extend(
        ATTRIBUTES.map(|attribute| Q::InstanceAttribute {
            instance: id(),
            attribute: attribute.to_owned(),
        }),
    );
    let groups: Vec<_> = original.groups().into_values().flatten().map(|g| g.to_string()).collect();
    if !groups.is_empty() {
        all.push(Q::SecurityGroups { groups: groups.clone() });
        all.push(Q::SecurityGroupRules { groups });
    }
    all.extend(network_questions(original));
    all.extend(access_questions(original));
    if let Some(Some(scaling)) = original.scaling.get() {
        let group = scaling.membership.group.clone();
        all.push(Q::ScalingGroup { group: group.clone() });
        all.push(Q::ScalingActivities { group });
        let template = scaling.group.as_ref().and_then(|g| g.launch_template.clone());
        all.extend(template.map(|(template, version)| Q::LaunchTemplate { template, version }));
    }
    let targets = original.targets.get().into_iter().flatten();
    all.extend(targets.map(|(group, _)| Q::TargetHealth { target_group: group.to_string() }));
    let classic = original.classic.get().into_iter().flatten();
    all.extend(classic.map(|name| Q::ClassicBalancer { name: name.clone() }));
    let mut seen = std::collections::HashSet::new();
    all.retain(|question| seen.insert(question.clone()));
    all
}

fn network_questions(original: &Original) -> Vec<Question> {
    use Question as Q;
    let i = &original.instance;
    let mut resources = vec![i.id.to_string()];
    resources.extend(i.volumes.iter().map(|v| v.volume.to_string()));
    let interfaces = original.interfaces.get().map(Vec::as_slice).unwrap_or_default();
    resources.extend(interfaces.iter().map(|o| o.interface.id.to_string()));
    let mut all = vec![Q::Tags { resources }];
    if let Some(vpc) = &i.vpc {
        let vpc = vpc.to_string();
        let mut logged = vec![vpc.clone()];
        logged.extend(i.subnet.clone());
        logged.extend(interfaces.iter().map(|o| o.interface.id.to_string()));
        all.push(Q::FlowLogs { resources: logged });
        all.push(Q::Vpc { vpc: vpc.clone() });
        all.push(Q::RouteTables { vpc });
    }
    let subnets = interfaces.iter().map(|o| o.interface.subnet.clone()).chain(i.subnet.clone());
    for subnet in subnets {
        all.push(Q::Subnet { subnet: subnet.clone() });
        all.push(Q::NetworkAcls { subnet });
    }
    all
}

fn access_questions(original: &Original) -> Vec<Question> {
    use Question as Q;
    let Some(Some(profile)) = original.profile.get() else { return Vec::new() };
    let mut all = vec![Q::Profile { name: profile.name.clone() }];
    if let Some((role, _)) = &profile.role {
        let role = role.to_string();
        all.push(Q::Role { role: role.clone() });
        all.push(Q::AttachedPolicies { role: role.clone() });
        all.push(Q::InlinePolicies { role });
    }
    all
}

/// Asks what has not been answered yet, stores the answers, logs them.
pub async fn run(case: &Case) {
    case.progress.began(&case.scene.instance, Step::Record, "record");
    record(case).await;
    case.progress.ended(&case.scene.instance, Step::Record, "record");
}

async fn record(case: &Case) {
    let ledger = case.journal.ledger().await;
    let answered = |question: &Question| {
        let start = format!("{}{}-1", prefix(case), question.file_name());
        ledger.exhibits.keys().any(|key| key.starts_with(&start))
    };
    let due: Vec<_> =
        questions(&case.scene.original).into_iter().filter(|q| !answered(q)).collect();
    // A question that was refused before is asked once a run: permissions may have been mended.
    let asking: Vec<_> = due
        .into_iter()
        .map(|question| async move {
            let name = question.file_name();
            let answers = match ask(case, &question).await {
                Ok(answers) => answers,
                Err(error) => return (name, Err(error.to_string())),
            };
            let keeping = (1..).zip(answers).map(|(n, answer)| {
                let name = format!("{name}-{n}");
                async move { keep(case, &name, answer).await }
            });
            let kept = join_all(keeping).await;
            (name, Ok(kept))
        })
        .collect();
    let answers: Vec<_> = stream::iter(asking).buffer_unordered(12).collect().await;
    let mut exhibits = Vec::new();
    let mut missing = BTreeMap::new();
    for (question, answers) in answers {
        match answers {
            Err(error) => {
                missing.insert(question, error);
            }
            Ok(kept) => exhibits.extend(kept.into_iter().flatten()),
        }
    }
    let new = missing.iter().any(|(question, why)| ledger.missing.get(question) != Some(why));
    if !exhibits.is_empty() || new {
        exhibits.sort_by(|a, b| a.key.cmp(&b.key));
        let body = Body::Recorded { exhibits, missing, survivors: Vec::new() };
        case.journal.append(Some(Step::Record), body).await;
    }
    trail(case).await;
}

/// One question, and once again where that may help. No more often: what is behind the port repeats each for half a minute, and
/// all answers wait for the last one before any is logged.
async fn ask(case: &Case, question: &Question) -> cleanroom_cloud::Result<Vec<Answer>> {
    match case.facts.ask(question).await {
        Err(error) if error.is_transient() => {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            case.facts.ask(question).await
        }
        ended => ended,
    }
}

fn prefix(case: &Case) -> String {
    format!("cases/{}/record/", case.scene.case)
}

/// Stores one answer. Where an ended run stored another under this name without logging it, the digest becomes part of the
/// name. Where the store is down, the spool keeps it.
async fn keep(case: &Case, name: &str, answer: Answer) -> Option<Exhibit> {
    let sha256 = digest(&answer.bytes);
    let size = answer.bytes.len() as u64;
    let short: String = sha256.to_string().chars().take(12).collect();
    let mut file = format!("{name}.{}", answer.extension);
    let mut stored = create(case, &file, &answer.bytes).await;
    if stored.as_ref().is_ok_and(|same| !same) {
        file = format!("{name}-{short}.{}", answer.extension);
        stored = create(case, &file, &answer.bytes).await;
    }
    if let Err(error) = stored {
        // Another run may have stored an answer under the plain name meanwhile.
        file = format!("{name}-{short}.{}", answer.extension);
        let kept = case.journal.spool().keep_object(&case.scene.case, &file, &answer.bytes);
        if kept.is_none() {
            case.short(Shortfall {
                step: Step::Record,
                what: format!("{file} could not be stored anywhere: {error}"),
                advice: "run respond again with a store that works: it asks again".to_owned(),
            });
            return None;
        }
    }
    Some(Exhibit {
        key: format!("{}{file}", prefix(case)),
        sha256,
        size,
        operation: answer.operation,
        request: answer.request,
    })
}

/// Creates an object of the record. `Ok(false)` where another one has its name.
async fn create(case: &Case, file: &str, bytes: &[u8]) -> cleanroom_cloud::Result<bool> {
    if case.journal.down().is_some() {
        return Err(CloudError {
            operation: "s3:PutObject".to_owned(),
            resource: file.to_owned(),
            kind: cleanroom_cloud::ErrorKind::Unreachable,
            code: "StoreDown".to_owned(),
            message: "the store did not take an earlier object of this run".to_owned(),
            request: None,
        });
    }
    let key = format!("{}{file}", prefix(case));
    match case.store.create(&key, bytes.to_vec()).await? {
        Put::Created => Ok(true),
        Put::Exists => Ok(case.store.get(&key).await?.is_some_and(|there| there == bytes)),
    }
}

/// Stores what the spool holds of the record. Returns how many objects still wait.
pub async fn catch_up(case: &Case) -> usize {
    let spool = case.journal.spool();
    let mut waiting = 0;
    for (name, bytes) in spool.objects(&case.scene.case) {
        let key = format!("{}{name}", prefix(case));
        // Discarded only once these very bytes are there.
        let kept = match case.store.create(&key, bytes.clone()).await {
            Ok(Put::Created) => true,
            Ok(Put::Exists) => {
                case.store.get(&key).await.is_ok_and(|there| there.as_ref() == Some(&bytes))
            }
            Err(_) => false,
        };
        if kept {
            spool.discard_object(&case.scene.case, &name);
        } else {
            waiting += 1;
        }
    }
    waiting
}

/// CloudTrail's events of the instance and of its role session, which the instance's id names. Asked once, and once again when
/// the trail has caught up.
async fn trail(case: &Case) {
    let ledger = case.journal.ledger().await;
    let passes = |n: u32| {
        let start = format!("{}cloudtrail-pass-{n}-", prefix(case));
        ledger.exhibits.keys().any(|key| key.starts_with(&start))
    };
    let now = case.journal.now();
    let lagged = ledger.recorded_at.is_some_and(|at| now.seconds - at.seconds >= TRAIL_LAG);
    let pass = match (passes(1), passes(2)) {
        (false, _) => 1,
        (true, false) if lagged => 2,
        (true, false) => {
            case.note("CloudTrail may lag by a quarter of an hour: run respond again later, and it is asked again".to_owned());
            return;
        }
        (true, true) => return,
    };
    let mut exhibits = Vec::new();
    let mut missing = BTreeMap::new();
    let mut made: Vec<Survivor> = Vec::new();
    let instance: &InstanceId = &case.scene.instance;
    for (name, query) in [
        ("resource", EventQuery::Resource(instance.to_string())),
        ("session", EventQuery::Username(instance.to_string())),
    ] {
        let question = format!("cloudtrail-pass-{pass}-{name}");
        match events(case, &question, &query).await {
            Ok((kept, found)) => {
                exhibits.extend(kept);
                made.extend(found);
            }
            Err(error) => {
                missing.insert(question, error.to_string());
            }
        }
    }
    let refused_before = missing.iter().all(|(q, why)| ledger.missing.get(q) == Some(why));
    if !exhibits.is_empty() || !refused_before {
        let body = Body::Recorded { exhibits, missing, survivors: made };
        case.journal.append(Some(Step::Record), body).await;
    }
}

/// One question to CloudTrail, page by page.
async fn events(
    case: &Case,
    name: &str,
    query: &EventQuery,
) -> cleanroom_cloud::Result<(Vec<Exhibit>, Vec<Survivor>)> {
    let mut exhibits = Vec::new();
    let mut made = Vec::new();
    let mut next = None;
    for n in 1..=case.scene.policy.event_pages {
        case.scene.shared.trail_turn().await;
        let page = case.scene.inventory.events(query, next.as_deref()).await?;
        made.extend(survivors(&page.events));
        let raw: Vec<_> = page.events.iter().map(|event| event.raw.as_str()).collect();
        let answer = Answer {
            operation: "cloudtrail:LookupEvents".to_owned(),
            request: None,
            extension: "jsonl",
            // Each event is JSON already, kept as it came, one a line.
            bytes: raw.join("\n").into_bytes(),
        };
        exhibits.extend(keep(case, &format!("{name}-{n}"), answer).await);
        next = page.next;
        if next.is_none() {
            return Ok((exhibits, made));
        }
    }
    case.note(format!(
        "{name}: more CloudTrail events than {} pages hold",
        case.scene.policy.event_pages
    ));
    Ok((exhibits, made))
}
