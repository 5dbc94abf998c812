//! Whether a person is asked before an instance is contained, how long, and what they answer.
//!
//! Purpose: the brake at work. [`needed`] says why a person is to be asked, [`due`] what holds by now, [`ask`] asks; and
//! [`question`] and [`answer`] are the person's side. Touches the custody log, which alone decides what was answered; the
//! evidence bucket below `brake/`, and below `cases/<case>/approval/`, where the tokens of waiting tasks are kept; the
//! team's topic; and the tasks themselves, to end them. Never contains, never releases, and never takes silence for an
//! answer: what happens at the deadline is what was set.

use std::time::Duration;

use cleanroom_contract::{CaseId, InstanceId, Sha256, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{FlowError, find};
use crate::{
    brake::{self, AtDeadline, Counts, Verdict},
    case::{Case, Run, Step},
    engine::again,
    execution::{Approval, Failed, Input},
    journal::{Answered, Asked, Ledger, digest, event::Body},
    steps::notify::{self, Milestone},
};

/// What is to become of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It is contained.
    Contain,
    /// It is left as it is, preserved and watched.
    Leave,
}

impl Decision {
    /// What becomes of the instance, for people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Contain => "contained",
            Self::Leave => "left as it is",
        }
    }
}

impl From<AtDeadline> for Decision {
    fn from(otherwise: AtDeadline) -> Self {
        match otherwise {
            AtDeadline::Contain => Self::Contain,
            AtDeadline::Leave => Self::Leave,
        }
    }
}

/// What holds by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It is decided.
    Decided(Decision),
    /// It is not, and people are asked again after so many seconds: from 60 to 86,400.
    Wait {
        /// How many.
        seconds: u64,
    },
}

/// The least and the most that the state machine waits between two questions.
const SECONDS: (u64, u64) = (60, 86_400);

/// Why a person is to be asked before this case's instance is contained; empty where nobody is.
///
/// Where the bucket does not answer, the budget can not be counted, and does not hold for this case: that the evidence store
/// is broken never keeps an instance from being contained. All else that asks for a person does so then too, and so does a
/// budget of 0, for which nothing is to be counted.
pub async fn needed(case: &Case, input: &Input) -> Vec<String> {
    // Contained already, it would only be contained again.
    if case.journal.ledger().await.contained_at.is_some() {
        return Vec::new();
    }
    let mut why = Vec::new();
    if input.approval == Some(Approval::Needed) {
        why.push("whoever began the response wants a person to be asked first".to_owned());
    }
    // Without a source, a person at a terminal began it.
    let Some(source) = &input.source else { return why };
    let counts = again(case.bounds.custody, || counted(case)).await.unwrap_or_else(|error| {
        case.note(format!(
            "the budget of automatic containments could not be counted, and does not hold for this case: {error}"
        ));
        Counts::default()
    });
    let part = input.part.unwrap_or(crate::alert::Part::Unsaid);
    if let Verdict::Ask { why: more } = brake::judge(source, part, counts, &case.scene.policy.brake)
    {
        why.extend(more);
    }
    why
}

async fn counted(case: &Case) -> cleanroom_cloud::Result<Counts> {
    let original = &case.scene.original;
    let scaling = original.scaling.get().and_then(Option::as_ref);
    let group = scaling.map(|scaling| scaling.membership.group.as_str());
    let whose = (&original.instance, group);
    let now = case.journal.now();
    brake::counted(&*case.store, &case.scene.caller, whose, &case.scene.case, now).await
}

/// What holds in this round of asking, the first being 1.
pub async fn due(case: &Case, input: &Input, round: u64) -> Due {
    let brake = &case.scene.policy.brake;
    let otherwise = input.otherwise.unwrap_or(brake.at_deadline);
    let ledger = case.journal.ledger().await;
    decide_due(&ledger, otherwise, (brake.deadline, round), case.journal.now())
}

/// Decides by the log; by the rounds so far where the log does not say since when people are asked, since it could not be
/// written.
fn decide_due(
    ledger: &Ledger,
    otherwise: AtDeadline,
    (deadline, round): (Duration, u64),
    now: Timestamp,
) -> Due {
    if let Some(answered) = &ledger.answered {
        return Due::Decided(answered.decision);
    }
    // Somebody at a terminal was faster, in either direction.
    if ledger.released_at.is_some() || ledger.closed_at.is_some() {
        return Due::Decided(Decision::Leave);
    }
    if ledger.contained_at.is_some() {
        return Due::Decided(Decision::Contain);
    }
    let between = between(deadline);
    let (left, otherwise) = match &ledger.asked {
        Some(asked) => (asked.deadline.seconds.saturating_sub(now.seconds), asked.otherwise),
        None => {
            let waited = round.saturating_sub(1).saturating_mul(between);
            let left = i64::try_from(deadline.as_secs()).unwrap_or(i64::MAX);
            (left.saturating_sub_unsigned(waited), otherwise)
        }
    };
    let Some(left) = u64::try_from(left).ok().filter(|left| *left > 0) else {
        return Due::Decided(otherwise.into());
    };
    // A last wait that ends at the deadline, instead of one that is too short to be waited.
    let seconds = if left < between + SECONDS.0 { left } else { between };
    Due::Wait { seconds: seconds.clamp(SECONDS.0, SECONDS.1) }
}

/// The seconds between two questions: four a deadline, and at least one a day.
fn between(deadline: Duration) -> u64 {
    (deadline.as_secs() / 4).clamp(SECONDS.0, SECONDS.1 - SECONDS.0)
}

/// The token of a task that waits for an answer, as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Waiting {
    /// The form of this object: 1.
    v: u8,
    case: CaseId,
    round: u64,
    token: String,
}

fn prefix(case: &CaseId) -> String {
    format!("cases/{case}/approval/")
}

/// `<round>-<digest>`: a task that is tried again has another token in the same round, and so has a later execution.
fn name(round: u64, token: &str) -> String {
    let Sha256(digest) = digest(token.as_bytes());
    let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{round}-{digest}")
}

/// Asks people, or reminds them, and keeps the token by which their answer ends the task that waits.
///
/// # Errors
/// When neither the token could be kept nor anybody be told. Where one of both could, the next look at the log does the rest.
pub async fn ask(case: &Case, input: &Input, (round, token): (u64, &str)) -> Result<(), Failed> {
    let scene = &case.scene;
    let name = name(round, token);
    let kept = keep(case, &name, (round, token)).await;
    let asked = match case.journal.ledger().await.asked {
        Some(asked) => asked,
        None => begin(case, input).await,
    };
    let milestone = format!("{}-{name}", Milestone::Asked.as_str());
    notify::publish_as(case, Milestone::Asked, &milestone, &lines(case, input, &asked)).await;
    let told = case.journal.ledger().await.notified.contains(&milestone);
    match kept {
        Err(why) if !told => Err(Failed {
            retryable: true,
            why: format!(
                "ask whether to contain {} of case {}: nobody was told, and the task's token is not kept: {why}",
                scene.instance, scene.case
            ),
        }),
        Err(why) => {
            case.note(format!(
                "the task's token could not be kept, so an answer takes effect at the next reminder: {why}"
            ));
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

async fn keep(case: &Case, name: &str, (round, token): (u64, &str)) -> Result<(), String> {
    let key = format!("{}{name}.json", prefix(&case.scene.case));
    let (case_id, token) = (case.scene.case.clone(), token.to_owned());
    let bytes = serde_json::to_vec(&Waiting { v: 1, case: case_id, round, token });
    let bytes = bytes.map_err(|error| error.to_string())?;
    // One that exists is this very token's.
    again(case.bounds.custody, || case.store.create(&key, bytes.clone())).await.map(|_| ())
}

/// Logs that people are asked from now on.
async fn begin(case: &Case, input: &Input) -> Asked {
    let brake = &case.scene.policy.brake;
    let mut why = needed(case, input).await;
    if why.is_empty() {
        why.push("the execution asks for a person's word".to_owned());
    }
    let at = case.journal.now();
    let seconds = i64::try_from(brake.deadline.as_secs()).unwrap_or(i64::MAX);
    let deadline = Timestamp { seconds: at.seconds.saturating_add(seconds), nanos: 0 };
    let otherwise = input.otherwise.unwrap_or(brake.at_deadline);
    let body = Body::Asked { why: why.clone(), deadline, otherwise };
    case.journal.append(Some(Step::Verify), body).await;
    // Of two that ask at the same moment the first holds.
    let logged = case.journal.ledger().await.asked;
    logged.unwrap_or(Asked { at, why, deadline, otherwise })
}

/// What people are told: who says what, why they are asked, until when, and the very command to type.
fn lines(case: &Case, input: &Input, asked: &Asked) -> Vec<String> {
    let scene = &case.scene;
    let mut lines = Vec::new();
    if let Some(source) = &input.source {
        let reason = input.reason.as_deref().unwrap_or("it gave no reason");
        lines.push(format!("an alert ({}) says: {reason}", source.word()));
    }
    lines.extend(asked.why.iter().map(|why| format!("you are asked because {why}")));
    lines.push(format!(
        "where nobody answers until {}, it is {}",
        to_the_second(asked.deadline),
        asked.otherwise.words()
    ));
    let command = format!(
        "cleanroom approve {} --region {} --bucket {}",
        scene.case,
        scene.caller.region,
        case.store.bucket()
    );
    lines.push(format!("to contain it: {command}"));
    lines.push(format!("to leave it as it is: {command} --refuse"));
    lines
}

/// A time as people read it.
fn to_the_second(at: Timestamp) -> String {
    Timestamp { nanos: 0, ..at }.to_string().replace(".000000000", "")
}

/// What a case waits for, and the very command to type: for whoever looks at it at night.
#[must_use]
pub fn waiting(case: &CaseId, until: Timestamp) -> String {
    let at = Timestamp { nanos: 0, ..until }.to_string();
    // `2026-03-01T14:30`, and seconds that nobody needs.
    let until = at.get(..16).unwrap_or(&at).replace('T', " ");
    format!("waits for approval until {until} UTC: cleanroom approve {case}")
}

/// What a person is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Question {
    /// The case.
    pub case: CaseId,
    /// The instance that is contained or not.
    pub instance: InstanceId,
    /// Who says that it is compromised, and why, as the log has it.
    pub reason: Option<String>,
    /// What else speaks for it.
    pub grounds: Vec<String>,
    /// Since when, why and until when people are asked; none where nobody has been.
    pub asked: Option<Asked>,
    /// What was answered before.
    pub answered: Option<Answered>,
}

/// What is asked about a case, which is opened to be answered.
///
/// # Errors
/// When there is no such case, its log can not be read, or an answer would decide nothing any more.
pub async fn question(run: &Run, case: &CaseId) -> Result<(Case, Question), FlowError> {
    let (case, ledger, known) = find::open(run, case).await?;
    decide_open(&case.scene.case, &ledger, known.released).map_err(FlowError::Case)?;
    let question = Question {
        case: case.scene.case.clone(),
        instance: case.scene.instance.clone(),
        reason: ledger.reason,
        grounds: ledger.grounds,
        asked: ledger.asked,
        answered: ledger.answered,
    };
    Ok((case, question))
}

/// Whether an answer decides anything.
fn decide_open(case: &CaseId, ledger: &Ledger, released: bool) -> Result<(), String> {
    if ledger.closed_at.is_some() {
        return Err(format!("case {case} is closed: nothing of it waits for an answer"));
    }
    if released || ledger.released_at.is_some() {
        return Err(format!("case {case} was released: a new alert opens another"));
    }
    match ledger.contained_at {
        Some(at) => Err(format!(
            "the instance of case {case} is contained since {}, and waits for no answer: `cleanroom release {case}` puts it back",
            to_the_second(at)
        )),
        None => Ok(()),
    }
}

/// What came of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Given {
    /// The case.
    pub case: CaseId,
    /// What was answered.
    pub decision: Decision,
    /// Tasks that had waited for it, and go on.
    pub went_on: usize,
    /// Why the answer is not in the custody log, where it is not.
    pub unlogged: Option<String>,
    /// Tasks that could not be told, and why.
    pub untold: Vec<String>,
}

/// The most tokens that are tried, the newest first. An execution asks at most sixty times.
const MOST_TOKENS: usize = 300;

/// Logs a person's answer, and ends every task of the case that waits for one.
pub async fn answer(run: &Run, case: &Case, (decision, reason): (Decision, Option<&str>)) -> Given {
    let by = case.scene.caller.arn.clone();
    let body = Body::Answered { decision, by: by.clone(), reason: reason.map(str::to_owned) };
    // First the log: it holds for a task that asks again meanwhile.
    case.journal.append(None, body).await;
    let mut given = Given {
        case: case.scene.case.clone(),
        decision,
        went_on: 0,
        unlogged: case.journal.down(),
        untold: Vec::new(),
    };
    let output = json!({"decision": decision, "by": by}).to_string();
    let tokens = match tokens(case).await {
        Ok(tokens) => tokens,
        Err(why) => {
            given.untold.push(format!("the tokens of waiting tasks can not be read: {why}"));
            return given;
        }
    };
    for (key, token) in tokens {
        let told =
            again(case.bounds.original, || run.cloud.workflows.succeed(&token, &output)).await;
        match told {
            Ok(true) => given.went_on += 1,
            // It asked again since, or its execution has ended.
            Ok(false) => {}
            Err(why) => given.untold.push(format!("the task of {key} can not be ended: {why}")),
        }
    }
    given
}

/// The tokens that are kept for a case, each with its key, the newest round first.
async fn tokens(case: &Case) -> Result<Vec<(String, String)>, String> {
    let (id, bound) = (&case.scene.case, case.bounds.original);
    let prefix = prefix(id);
    let mut keys = again(bound, || case.store.list(&prefix, false)).await?;
    let round = |key: &String| {
        let name = key.strip_prefix(&prefix)?;
        name.split_once('-')?.0.parse::<u64>().ok()
    };
    keys.retain(|key| round(key).is_some());
    keys.sort_by_key(|key| std::cmp::Reverse(round(key)));
    keys.truncate(MOST_TOKENS);
    let mut tokens = Vec::with_capacity(keys.len());
    for key in keys {
        let bytes = again(bound, || case.store.get(&key)).await?;
        let waiting = bytes.and_then(|bytes| serde_json::from_slice::<Waiting>(&bytes).ok());
        if let Some(waiting) = waiting.filter(|waiting| waiting.case == *id) {
            tokens.push((key, waiting.token));
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp { seconds: 1_000_000, nanos: 5 };

    fn asked(left: i64, otherwise: AtDeadline) -> Ledger {
        let deadline = Timestamp { seconds: NOW.seconds + left, nanos: 0 };
        let asked = Asked { at: NOW, why: Vec::new(), deadline, otherwise };
        Ledger { asked: Some(asked), ..Ledger::default() }
    }

    fn decided(ledger: &Ledger, deadline: u64, round: u64) -> Due {
        decide_due(ledger, AtDeadline::Contain, (Duration::from_secs(deadline), round), NOW)
    }

    #[test]
    fn people_are_asked_four_times_a_deadline_and_the_last_wait_ends_with_it() {
        for (left, deadline, expected) in [
            (3600, 3600, 900),
            (961, 3600, 900),
            (959, 3600, 959),
            (900, 3600, 900),
            (59, 3600, 60),
            (1, 3600, 60),
            (120, 120, 60),
            (119, 120, 119),
            (60, 60, 60),
            (604_800, 604_800, 86_340),
            (86_399, 604_800, 86_399),
        ] {
            let due = decided(&asked(left, AtDeadline::Leave), deadline, 2);
            assert_eq!(due, Due::Wait { seconds: expected }, "{left} of {deadline}");
        }
    }

    #[test]
    fn the_deadline_decides_as_was_announced() {
        for (left, otherwise, expected) in [
            (0, AtDeadline::Contain, Decision::Contain),
            (0, AtDeadline::Leave, Decision::Leave),
            (-5000, AtDeadline::Leave, Decision::Leave),
        ] {
            let due = decided(&asked(left, otherwise), 3600, 5);
            assert_eq!(due, Due::Decided(expected), "{left} {otherwise:?}");
        }
    }

    #[test]
    fn without_a_log_the_rounds_count() {
        let none = Ledger::default();
        assert_eq!(decided(&none, 3600, 1), Due::Wait { seconds: 900 });
        assert_eq!(decided(&none, 3600, 4), Due::Wait { seconds: 900 });
        assert_eq!(decided(&none, 3600, 5), Due::Decided(Decision::Contain));
        assert_eq!(decided(&none, 3600, u64::MAX), Due::Decided(Decision::Contain));
    }

    #[test]
    fn what_a_person_said_or_did_decides_before_the_deadline() {
        let answered = |decision| Answered { at: NOW, decision, by: String::new(), reason: None };
        let open = asked(3600, AtDeadline::Contain);
        let with = |change: &dyn Fn(&mut Ledger)| {
            let mut ledger = open.clone();
            change(&mut ledger);
            decided(&ledger, 3600, 2)
        };
        let leave = with(&|l| l.answered = Some(answered(Decision::Leave)));
        assert_eq!(leave, Due::Decided(Decision::Leave));
        let contain = with(&|l| l.answered = Some(answered(Decision::Contain)));
        assert_eq!(contain, Due::Decided(Decision::Contain));
        let by_hand = with(&|l| l.contained_at = Some(NOW));
        assert_eq!(by_hand, Due::Decided(Decision::Contain));
        let released = with(&|l| {
            l.contained_at = Some(NOW);
            l.released_at = Some(NOW);
        });
        assert_eq!(released, Due::Decided(Decision::Leave));
    }

    #[test]
    fn an_answer_that_decides_nothing_is_refused_with_the_reason() {
        let case: CaseId = "c-1".parse().expect("a case id");
        let none = Ledger::default();
        assert_eq!(decide_open(&case, &none, false), Ok(()));
        for (ledger, released, expected) in [
            (none.clone(), true, "was released"),
            (Ledger { closed_at: Some(NOW), ..none.clone() }, true, "is closed"),
            (Ledger { contained_at: Some(NOW), ..none }, false, "is contained since"),
        ] {
            let why = decide_open(&case, &ledger, released).expect_err(expected);
            assert!(why.contains(expected), "{why}");
        }
    }

    #[test]
    fn what_is_waited_for_is_told_with_the_command_and_the_day() {
        let case: CaseId = "c-1".parse().expect("a case id");
        let until = Timestamp { seconds: 1_772_375_459, nanos: 9 };
        let expected = "waits for approval until 2026-03-01 14:30 UTC: cleanroom approve c-1";
        assert_eq!(waiting(&case, until), expected);
    }

    #[test]
    fn each_token_has_a_name_of_its_own() {
        assert_eq!(name(1, "a"), name(1, "a"));
        assert_ne!(name(1, "a"), name(1, "b"));
        assert!(name(12, "a").starts_with("12-"));
    }
}
