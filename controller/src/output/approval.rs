//! What a person is asked, and what came of the answer.

use cleanroom_contract::printable;
use cleanroom_controller::flow::approval::{Given, Question};

use super::{field, time};
use crate::terminal::Palette;

/// What is asked.
pub(crate) fn question(question: &Question, palette: Palette, width: usize) -> String {
    let mut out = format!("{}\n", palette.strong(question.case.as_str()));
    let mut line = |name: &str, text: &str| out.push_str(&field(name, &printable(text), width));
    line("instance", question.instance.as_str());
    line("reason", question.reason.as_deref().unwrap_or("none was given"));
    for ground in &question.grounds {
        line("speaks for", ground);
    }
    match &question.asked {
        Some(asked) => {
            for why in &asked.why {
                line("you decide", &format!("because {why}"));
            }
            let otherwise = asked.otherwise.words();
            line("deadline", &format!("{}, then it is {otherwise}", time(asked.deadline)));
        }
        None => {
            line("note", "nobody has been asked about it: an answer holds for when somebody is")
        }
    }
    if let Some(answered) = &question.answered {
        let by = &answered.by;
        line("answered", &format!("that it is {}, by {by}", answered.decision.words()));
    }
    out
}

/// What came of the answer.
pub(crate) fn given(given: &Given, width: usize) -> String {
    let mut out = format!("{}: it is to be {}\n", given.case, given.decision.words());
    let mut line = |name: &str, text: &str| out.push_str(&field(name, &printable(text), width));
    match given.went_on {
        0 if given.untold.is_empty() => line(
            "note",
            "no task waits for the answer now: it is in the custody log, and holds when a response looks there next",
        ),
        0 => {}
        _ => line("done", "the response that waited goes on"),
    }
    if let Some(why) = &given.unlogged {
        line("NOT DONE", &format!("the answer is not in the custody log: {why}"));
    }
    for why in &given.untold {
        line("NOT DONE", why);
    }
    out
}

#[cfg(test)]
mod tests {
    use cleanroom_contract::Timestamp;
    use cleanroom_controller::{
        brake::AtDeadline,
        flow::approval::Decision,
        journal::{Answered, Asked},
    };

    use super::*;

    #[test]
    fn a_question_says_all_that_decides_and_hides_what_a_terminal_would_do() {
        let at = Timestamp { seconds: 1_767_225_600, nanos: 0 };
        let mut asked = Question {
            case: "c-1".parse().expect("a case"),
            instance: "i-0123456789abcdef0".parse().expect("an id"),
            reason: Some("a beacon\u{1b}[2J".to_owned()),
            grounds: vec!["GuardDuty x 8.0".to_owned()],
            asked: Some(Asked {
                at,
                why: vec!["the budget is 20".to_owned()],
                deadline: at,
                otherwise: AtDeadline::Leave,
            }),
            answered: None,
        };
        let expected = "\
c-1
  instance    i-0123456789abcdef0
  reason      a beacon\\u{1b}[2J
  speaks for  GuardDuty x 8.0
  you decide  because the budget is 20
  deadline    2026-01-01T00:00:00Z, then it is left as it is
";
        assert_eq!(question(&asked, Palette::default(), usize::MAX), expected);
        let by = "arn:aws:iam::123456789012:user/ops".to_owned();
        asked.answered = Some(Answered { at, decision: Decision::Contain, by, reason: None });
        let text = question(&asked, Palette::default(), usize::MAX);
        assert!(text.ends_with(
            "answered    that it is contained, by arn:aws:iam::123456789012:user/ops\n"
        ));
    }

    #[test]
    fn an_answer_says_whether_anything_waited_for_it() {
        let of = |went_on, unlogged: Option<&str>, untold: &[&str]| {
            let given = Given {
                case: "c-1".parse().expect("a case"),
                decision: Decision::Contain,
                went_on,
                unlogged: unlogged.map(str::to_owned),
                untold: untold.iter().map(|why| (*why).to_owned()).collect(),
            };
            super::given(&given, usize::MAX)
        };
        assert!(of(1, None, &[]).contains("goes on"));
        assert!(of(0, None, &[]).contains("no task waits"));
        let denied = of(0, Some("denied"), &["states: denied"]);
        assert_eq!(denied.matches("NOT DONE").count(), 2, "{denied}");
        assert!(!denied.contains("no task waits"));
    }
}
