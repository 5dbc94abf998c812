//! Service quotas that a case uses up.
//!
//! Purpose: how much of each there may be and is, for `preflight`. Touches Service Quotas and EC2, reading only. Never
//! asks for more of anything.

use cleanroom_cloud::{ErrorKind, Quota, Result};

use crate::{
    clients::Clients,
    error::{bad_answer, fail},
    pages, posture,
};

/// How the use of a quota is counted.
#[derive(Clone, Copy)]
enum Counted {
    Vpcs,
    SecurityGroups,
    /// The storage of volumes of one type, in TiB.
    Storage(&'static str),
    /// Not, or not cheaply: an account may have 100,000 snapshots.
    Not,
}

/// The quotas: service, code, name, and how their use is counted (the codes are those that Service Quotas lists).
const QUOTAS: [(&str, &str, &str, Counted); 6] = [
    ("vpc", "L-F678F1CE", "VPCs per Region", Counted::Vpcs),
    ("vpc", "L-E79EC296", "security groups per Region", Counted::SecurityGroups),
    ("vpc", "L-2AFB9258", "security groups per network interface", Counted::Not),
    ("ebs", "L-7A658B76", "storage of gp3 volumes, TiB", Counted::Storage("gp3")),
    ("ebs", "L-D18FCD1D", "storage of gp2 volumes, TiB", Counted::Storage("gp2")),
    ("ebs", "L-309BACF6", "snapshots per Region", Counted::Not),
];

/// The quotas that this Region knows, with their use.
pub(crate) async fn quotas(clients: &Clients) -> Result<Vec<Quota>> {
    let mut quotas = Vec::new();
    for (service, code, name, counted) in QUOTAS {
        if let Some(limit) = limit(clients, service, code).await? {
            quotas.push(Quota { name: name.to_owned(), limit, used: used(clients, counted).await });
        }
    }
    Ok(quotas)
}

/// What is in force in this account, else the default of AWS; none for a quota that this Region does not have.
async fn limit(clients: &Clients, service: &str, code: &str) -> Result<Option<u64>> {
    const APPLIED: &str = "servicequotas:GetServiceQuota";
    const DEFAULT: &str = "servicequotas:GetAWSDefaultServiceQuota";
    let subject = format!("{service} {code}");
    let answer =
        clients.quotas.get_service_quota().service_code(service).quota_code(code).send().await;
    let quota = match answer.map_err(|e| fail(APPLIED, &subject, e)) {
        Ok(answer) => answer.quota,
        // Service Quotas knows no applied value of a quota that was never raised, for some of them.
        Err(error) if error.kind == ErrorKind::NotFound => {
            let answer = clients
                .quotas
                .get_aws_default_service_quota()
                .service_code(service)
                .quota_code(code)
                .send()
                .await;
            match answer.map_err(|e| fail(DEFAULT, &subject, e)) {
                Ok(answer) => answer.quota,
                Err(error) if error.kind == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Err(error) => return Err(error),
    };
    let value = quota.and_then(|q| q.value).and_then(whole);
    value.map(Some).ok_or_else(|| bad_answer(APPLIED, &subject, "a value"))
}

/// A quota's value: whole, although it is sent as a fraction.
fn whole(value: f64) -> Option<u64> {
    // By way of its text, since numbers have no checked conversion.
    format!("{:.0}", value.floor()).parse().ok()
}

/// How much there is. What can not be counted is no reason to hide the limit.
async fn used(clients: &Clients, counted: Counted) -> Option<u64> {
    let count = match counted {
        Counted::Vpcs => posture::vpcs(clients).await.ok()?.len(),
        Counted::SecurityGroups => security_groups(clients).await.ok()?,
        Counted::Storage(kind) => return tebibytes(gibibytes(clients, kind).await.ok()?),
        Counted::Not => return None,
    };
    u64::try_from(count).ok()
}

/// How many security groups this Region has.
async fn security_groups(clients: &Clients) -> Result<usize> {
    let stream = clients.ec2.describe_security_groups().max_results(1000).into_paginator().send();
    let pages = pages::all("ec2:DescribeSecurityGroups", "", stream).await?;
    Ok(pages.iter().map(|page| page.security_groups().len()).sum())
}

/// The sizes of all volumes of a type, in GiB.
async fn gibibytes(clients: &Clients, kind: &str) -> Result<Vec<i32>> {
    let stream = clients
        .ec2
        .describe_volumes()
        .filters(crate::facts::filter("volume-type", [kind]))
        .max_results(1000)
        .into_paginator()
        .send();
    let pages = pages::all("ec2:DescribeVolumes", "", stream).await?;
    let volumes = pages.into_iter().flat_map(|page| page.volumes.unwrap_or_default());
    Ok(volumes.filter_map(|volume| volume.size).collect())
}

/// Sizes in GiB together in TiB, begun ones counted as whole.
fn tebibytes(sizes: Vec<i32>) -> Option<u64> {
    let sum: i64 = sizes.into_iter().map(i64::from).sum();
    Some(u64::try_from(sum).ok()?.div_ceil(1024))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canned::canned;

    #[test]
    fn values_are_whole_numbers() {
        for (value, expected) in [
            (5.0, Some(5)),
            (2500.9, Some(2500)),
            (0.0, Some(0)),
            (-1.0, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ] {
            assert_eq!(whole(value), expected, "{value}");
        }
    }

    #[test]
    fn a_begun_tebibyte_counts() {
        assert_eq!(tebibytes(vec![1000, 24]), Some(1));
        assert_eq!(tebibytes(vec![1000, 25]), Some(2));
        assert_eq!(tebibytes(Vec::new()), Some(0));
    }

    #[tokio::test]
    async fn a_quota_that_was_never_raised_has_its_default() {
        let canned = canned(None, |request, _| {
            if request.contains("GetServiceQuota") {
                (400, r#"{"__type":"NoSuchResourceException"}"#.to_owned())
            } else if request.contains("L-F678F1CE") {
                (200, r#"{"Quota":{"Value":5.0}}"#.to_owned())
            } else if request.contains("GetAWSDefaultServiceQuota") {
                (400, r#"{"__type":"NoSuchResourceException"}"#.to_owned())
            } else {
                (403, "<Response/>".to_owned())
            }
        });
        let quotas = quotas(&canned.clients).await.expect("one quota");
        let vpcs = Quota { name: "VPCs per Region".into(), limit: 5, used: None };
        assert_eq!(quotas, [vpcs], "a use that can not be counted hides no limit");
    }
}
