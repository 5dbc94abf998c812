//! Tells the team, once for each milestone. Never holds anything up: whoever calls does not wait.

use std::{collections::BTreeMap, time::Duration};

use cleanroom_cloud::Notice;
use serde_json::json;

use crate::{
    case::{Case, Shortfall, Step},
    journal::event::Body,
};

/// What people are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named for what happened")]
pub enum Milestone {
    Asked,
    Contained,
    Preserved,
    Failed,
    Released,
    Reported,
    Unreported,
}

impl Milestone {
    /// Its name in messages and in the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Contained => "contained",
            Self::Preserved => "preserved",
            Self::Failed => "failed",
            Self::Released => "released",
            Self::Reported => "reported",
            Self::Unreported => "unreported",
        }
    }

    /// What the instance is, for people.
    fn words(self) -> &'static str {
        match self {
            Self::Asked => "waiting for a person's word",
            milestone => milestone.as_str(),
        }
    }

    fn severity(self) -> &'static str {
        match self {
            Self::Asked | Self::Contained | Self::Failed | Self::Unreported => "high",
            Self::Preserved | Self::Released | Self::Reported => "info",
        }
    }
}

/// Publishes, unless the log says that this was published. A topic that fails is a shortfall.
pub async fn publish(case: &Case, milestone: Milestone, lines: &[String]) {
    publish_as(case, milestone, milestone.as_str(), lines).await;
}

/// As [`publish`], once for each name in the log: a case may have several scans.
pub async fn publish_as(case: &Case, milestone: Milestone, name: &str, lines: &[String]) {
    if !case.does(Step::Notify) || case.journal.ledger().await.notified.contains(name) {
        return;
    }
    case.progress.began(&case.scene.instance, Step::Notify, milestone.as_str());
    send(case, (milestone, name), lines).await;
    case.progress.ended(&case.scene.instance, Step::Notify, milestone.as_str());
}

async fn send(case: &Case, (milestone, name): (Milestone, &str), lines: &[String]) {
    let notice = compose(case, milestone, lines);
    let mut pause = Duration::from_millis(200);
    let sending = async {
        loop {
            match case.notices.publish(&notice).await {
                Err(error) if error.is_transient() => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                ended => return ended.map_err(|e| e.to_string()),
            }
        }
    };
    let ended = tokio::time::timeout(case.bounds.custody * 3, sending).await;
    match ended.unwrap_or_else(|_| Err("the topic did not answer in time".to_owned())) {
        Ok(None) => case.note("no topic is configured: nobody was told".to_owned()),
        Ok(message) => {
            let body = Body::Notified { milestone: name.to_owned(), message };
            case.journal.append(Some(Step::Notify), body).await;
        }
        Err(why) => case.short(Shortfall {
            step: Step::Notify,
            what: format!(
                "the team was not told that {} is {}: {why}",
                case.scene.instance,
                milestone.as_str()
            ),
            advice: "tell them yourself; run respond again once the topic answers".to_owned(),
        }),
    }
}

fn compose(case: &Case, milestone: Milestone, lines: &[String]) -> Notice {
    let scene = &case.scene;
    let (name, severity) = (milestone.as_str(), milestone.severity());
    let words = milestone.words();
    let subject = format!("[cleanroom] {} {words}", scene.instance);
    let mut text = format!(
        "{} is {words}.\n\nCase {}, account {}, Region {}.\n",
        scene.instance, scene.case, scene.caller.account, scene.caller.region
    );
    for line in lines {
        text.push_str("- ");
        text.push_str(&cleanroom_contract::printable(line));
        text.push('\n');
    }
    let json = json!({
        "v": 1,
        "case": scene.case,
        "instance": scene.instance,
        "account": scene.caller.account,
        "region": scene.caller.region,
        "step": name,
        "severity": severity,
        "lines": lines,
    });
    let attributes = BTreeMap::from([
        ("case".to_owned(), scene.case.to_string()),
        ("severity".to_owned(), severity.to_owned()),
        ("step".to_owned(), name.to_owned()),
    ]);
    Notice { subject, text, json: json.to_string(), attributes }
}
