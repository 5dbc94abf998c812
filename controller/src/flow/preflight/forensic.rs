//! Whether another account is ready to have evidence copied into and examined: reads only.

use cleanroom_cloud::{AccountId, BucketPosture, Cloud, ErrorKind, Result};

use super::{
    Check, Level,
    admits::{self, Admitted},
    bucket::is_default_key,
    judge_key,
};
use crate::forensic::Forensic;

const AREA: &str = "forensic";

/// Looks at the forensic account, and at whether the bucket admits its rooms.
pub async fn forensic(cloud: &Cloud, forensic: &Forensic) -> Vec<Check> {
    let own_key = async {
        match &forensic.key {
            Some(key) => Some(forensic.inventory.key(key).await),
            None => None,
        }
    };
    let (caller, own_key, bucket) =
        tokio::join!(forensic.inventory.caller(), own_key, cloud.posture.bucket());
    let account = caller.map(|caller| (caller.account, caller.arn));
    let mut checks = vec![judge_role(&account, forensic)];
    checks.push(match own_key {
        None => Check::good(AREA, "key of copies", "that account's default for volumes"),
        Some(key) => {
            Check { area: AREA, name: "key of copies".to_owned(), ..judge_key(Some(&key)) }
        }
    });
    checks.push(judge_bucket(cloud.store.bucket(), &bucket, &forensic.account));
    checks.extend(judge_bucket_key(&bucket, &forensic.account));
    checks
}

fn judge_role(caller: &Result<(AccountId, String)>, forensic: &Forensic) -> Check {
    const NAME: &str = "role";
    let fix = "let the caller assume it: sts:AssumeRole on the role, and the caller in the role's trust policy";
    match caller {
        Ok((account, arn)) if *account == forensic.account => Check::good(AREA, NAME, arn),
        Ok((account, _)) => {
            let found = format!("{} leads to account {account}", forensic.role);
            Check::new(AREA, NAME, Level::Missing, &found, "name a role of the forensic account")
        }
        Err(error) if matches!(error.kind, ErrorKind::Denied | ErrorKind::Credentials) => {
            let found = format!("{} can not be acted in: {error}", forensic.role);
            Check::new(AREA, NAME, Level::Missing, &found, fix)
        }
        Err(error) => Check::unread(AREA, NAME, error),
    }
}

fn judge_bucket(bucket: &str, posture: &Result<BucketPosture>, account: &AccountId) -> Check {
    const NAME: &str = "bucket admits its rooms";
    let posture = match posture {
        Ok(posture) => posture,
        Err(error) => return Check::unread(AREA, NAME, error),
    };
    let policy = posture.policy.as_deref().unwrap_or(r#"{"Statement":[]}"#);
    let fix =
        format!("add to the bucket's policy: {}", admits::statements(bucket, account.as_str()));
    let judged = match admits::admits(policy, bucket, account.as_str()) {
        Ok(judged) => judged,
        Err(why) => {
            let found = format!("the bucket policy can not be read: {why}");
            return Check::new(AREA, NAME, Level::Unknown, &found, &fix);
        }
    };
    let of = |wanted: Admitted| -> Vec<String> {
        let some = judged.iter().filter(|(.., admitted)| *admitted == wanted);
        some.map(|(action, key, _)| format!("{action} ({key})")).collect()
    };
    let (no, perhaps) = (of(Admitted::No), of(Admitted::Perhaps));
    if !no.is_empty() {
        let found = format!("its policy does not allow account {account} {}", no.join(", "));
        return Check::new(AREA, NAME, Level::Missing, &found, &fix);
    }
    if !perhaps.is_empty() {
        let found = format!("its policy may allow account {account} {}", perhaps.join(", "));
        return Check::new(AREA, NAME, Level::Unknown, &found, &fix);
    }
    Check::good(AREA, NAME, &format!("by its policy, to roles of {account} under /cleanroom/"))
}

/// What can not be read from here: a key's policy.
fn judge_bucket_key(posture: &Result<BucketPosture>, account: &AccountId) -> Option<Check> {
    let key = posture.as_ref().ok()?.key.as_ref().filter(|key| !is_default_key(key))?;
    let found =
        format!("the bucket encrypts with {key}; whether its policy admits rooms is not read");
    let rooms = format!("arn:aws:iam::{account}:role/cleanroom/*");
    let fix = format!(
        r#"make sure that the key's policy has {{"Sid":"RoomsUseKey","Effect":"Allow","Principal":{{"AWS":"arn:aws:iam::{account}:root"}},"Action":["kms:Decrypt","kms:GenerateDataKey"],"Resource":"*","Condition":{{"ArnLike":{{"aws:PrincipalArn":"{rooms}"}}}}}}"#
    );
    Some(Check::new(AREA, "bucket's key admits its rooms", Level::Unknown, &found, &fix))
}
