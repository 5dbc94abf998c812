//! What goes wrong, and when.
//!
//! Purpose: to decide for each call whether it is let through. Decides by counting, by a seeded generator and
//! by the world's clock, so that the same test meets the same faults. Touches nothing but its own counts.

use std::time::Duration;

use cleanroom_cloud::ErrorKind;

/// One way for a call to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An error of this kind, nothing done; [`ErrorKind::Ambiguous`] is then a request that was lost on its
    /// way.
    Refuse(ErrorKind),
    /// Done, but the answer is an [`ErrorKind::Ambiguous`] error.
    LoseAnswer,
    /// The process dies before the call goes out.
    DieBefore,
    /// Done, and the process dies before the answer is there.
    DieAfter,
    /// Never answered, nothing done.
    Hang,
}

/// Which call is meant; counted from when the fault was set, the next one is 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// The n-th call.
    Call(u64),
    /// The n-th call that changes something, in the bucket and the topic too.
    Change(u64),
    /// The n-th call whose [text](crate::CallRecord::text) contains this: `s3:`, `ec2:CreateSnapshots`,
    /// `eni-0123`, `set_groups`.
    Matching(String, u64),
}

/// Faults at random, the same for the same seed and order of calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storm {
    /// The seed.
    pub seed: u64,
    /// How many calls of a hundred fail.
    pub percent: u8,
    /// How: one of these each time.
    pub faults: Vec<Fault>,
    /// Only calls whose text contains this; empty for all.
    pub matching: String,
}

#[derive(Debug)]
struct Planned {
    fault: Fault,
    at: At,
    times: u64,
    seen: u64,
}

#[derive(Debug)]
struct Outage {
    service: String,
    from: Duration,
    until: Option<Duration>,
}

/// All faults that are set.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    planned: Vec<Planned>,
    storm: Option<(Storm, fastrand::Rng)>,
    outages: Vec<Outage>,
}

impl Faults {
    pub(crate) fn plan(&mut self, fault: Fault, at: At, times: u64) {
        self.planned.push(Planned { fault, at, times, seen: 0 });
    }

    pub(crate) fn storm(&mut self, storm: Storm) {
        let generator = fastrand::Rng::with_seed(storm.seed);
        self.storm = Some((storm, generator));
    }

    pub(crate) fn outage(&mut self, service: &str, from: Duration, until: Option<Duration>) {
        self.outages.push(Outage { service: service.to_owned(), from, until });
    }

    pub(crate) fn end_outages(&mut self, service: &str) {
        self.outages.retain(|o| o.service != service);
    }

    /// The fate of one call. Every plan counts every call that it is about, also those that another fault
    /// takes.
    pub(crate) fn decide(&mut self, text: &str, mutates: bool, now: Duration) -> Option<Fault> {
        let mut fate = None;
        for plan in &mut self.planned {
            let (meant, nth) = match &plan.at {
                At::Call(nth) => (true, *nth),
                At::Change(nth) => (mutates, *nth),
                At::Matching(part, nth) => (text.contains(part.as_str()), *nth),
            };
            plan.seen += u64::from(meant);
            if meant && plan.seen >= nth && plan.seen - nth < plan.times {
                fate = fate.or(Some(plan.fault));
            }
        }
        let out = self.outages.iter().any(|o| {
            text.starts_with(&o.service) && o.from <= now && o.until.is_none_or(|until| now < until)
        });
        if out {
            fate = fate.or(Some(Fault::Refuse(ErrorKind::Unreachable)));
        }
        if let Some((storm, generator)) = &mut self.storm
            && text.contains(&storm.matching)
            && generator.u8(0..100) < storm.percent
        {
            fate = fate.or(generator.choice(&storm.faults).copied());
        }
        fate
    }
}
