//! `SHA256SUMS.sig`: the signature over a bundle's list of digests.
//!
//! Purpose: sign as `ssh-keygen -Y sign` does (OpenSSH PROTOCOL.sshsig), so that anyone verifies with
//! `ssh-keygen -Y verify`, and judge such a signature. Touches the key file and one folder. Never asks
//! for a passphrase, and never shows a key.

use std::{
    fmt,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use cleanroom_contract::printable;
use rustix::fs::OFlags;
use ssh_key::{Algorithm, HashAlg, LineEnding, PrivateKey, PublicKey, SshSig, public::KeyData};

use super::{
    folder::{Folder, read_bounded},
    sums::{SUMS, SUMS_LIMIT, SUMS_SIGNATURE},
};

/// What the signature is for; a signature made for anything else is not accepted.
pub(crate) const NAMESPACE: &str = "cleanroom-bundle@v1";
/// Longest key or signature file that is read, in bytes.
const KEY_LIMIT: u64 = 64 * 1024;

/// Why a bundle was not signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignatureError {
    /// The key file could not be read.
    #[error("read the signing key {path}")]
    ReadKey {
        /// The key file, printable.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The key file is not a private key in the OpenSSH format.
    #[error(
        "the signing key {path} is not an OpenSSH private key (make one with ssh-keygen -t ed25519)"
    )]
    Key {
        /// The key file, printable.
        path: String,
        /// What the format lacks.
        #[source]
        source: ssh_key::Error,
    },
    /// The key needs a passphrase, and nobody is there to give it.
    #[error(
        "the signing key {path} is encrypted and nobody can be asked for its passphrase: sign with a \
         key of its own made for this (ssh-keygen -t ed25519 -N ''), or decrypt a copy \
         (ssh-keygen -p -N '' -f COPY)"
    )]
    Encrypted {
        /// The key file, printable.
        path: String,
    },
    /// Others than its owner may use the key file.
    #[error("the signing key {path} may be used by others (mode {mode:04o}): chmod 600 it")]
    Permissions {
        /// The key file, printable.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// A kind of key that this program does not sign with.
    #[error("the signing key {path} is {algorithm}, and only ssh-ed25519 signs here")]
    Algorithm {
        /// The key file, printable.
        path: String,
        /// Its kind.
        algorithm: String,
    },
    /// The list to sign could not be read.
    #[error("read SHA256SUMS to sign it")]
    ReadSums(#[source] io::Error),
    /// The signature could not be made.
    #[error("sign SHA256SUMS")]
    Sign(#[source] ssh_key::Error),
    /// The signature could not be written.
    #[error("write SHA256SUMS.sig")]
    Write(#[source] io::Error),
}

/// A private key that can sign. Loaded before the scan begins, so that a key that cannot be used is
/// known then and not hours later.
pub(crate) struct SigningKey(PrivateKey);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.fingerprint())
    }
}

impl SigningKey {
    /// Reads an OpenSSH private key file.
    ///
    /// # Errors
    /// Where it is not a regular file of at most 64 KiB, is open to group or others, is encrypted, is
    /// no OpenSSH private key, or is not an ed25519 key.
    pub(crate) fn load(path: &Path) -> Result<Self, SignatureError> {
        let shown = || printable(&path.to_string_lossy());
        let unread = |source| SignatureError::ReadKey { path: shown(), source };
        let file = open_regular(path).map_err(unread)?;
        let mode = file.metadata().map_err(unread)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(SignatureError::Permissions { path: shown(), mode });
        }
        let bytes = read_bounded(&file, KEY_LIMIT)
            .and_then(|bytes| bytes.ok_or_else(|| io::ErrorKind::FileTooLarge.into()))
            .map_err(unread)?;
        let key = PrivateKey::from_openssh(&bytes)
            .map_err(|source| SignatureError::Key { path: shown(), source })?;
        if key.is_encrypted() {
            return Err(SignatureError::Encrypted { path: shown() });
        }
        if key.algorithm() != Algorithm::Ed25519 {
            let algorithm = key.algorithm().to_string();
            return Err(SignatureError::Algorithm { path: shown(), algorithm });
        }
        Ok(Self(key))
    }

    /// `SHA256:…`, as `ssh-keygen -l` shows it.
    pub(crate) fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    /// Signs the `SHA256SUMS` of the bundle in `dir` and makes `SHA256SUMS.sig` durable.
    ///
    /// # Errors
    /// Where the list cannot be read, or where `SHA256SUMS.sig` exists or cannot be written.
    pub(crate) fn sign_sums(&self, dir: &Path) -> Result<(), SignatureError> {
        let folder = Folder::open(dir).map_err(SignatureError::ReadSums)?;
        let sums = folder
            .file(SUMS)
            .and_then(|file| read_bounded(&file, SUMS_LIMIT))
            .and_then(|bytes| bytes.ok_or_else(|| io::ErrorKind::FileTooLarge.into()))
            .map_err(SignatureError::ReadSums)?;
        let pem = self
            .0
            .sign(NAMESPACE, HashAlg::Sha512, &sums)
            .and_then(|signature| signature.to_pem(LineEnding::LF))
            .map_err(SignatureError::Sign)?;
        let write = || {
            let mut file = folder.create(SUMS_SIGNATURE)?;
            file.write_all(pem.as_bytes())?;
            if !pem.ends_with('\n') {
                file.write_all(b"\n")?;
            }
            file.sync_all()?;
            folder.sync()
        };
        write().map_err(SignatureError::Write)
    }
}

/// Opens a file that the operator named; links are followed, but nothing is waited for.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("not a regular file")),
    }
}

/// Judges a signature over `sums`. Says who signed, as a public key; whether that is anyone to be
/// trusted is for the caller.
///
/// # Errors
/// Why it is no valid signature of a bundle, in words.
pub(crate) fn check(signature: &[u8], sums: &[u8]) -> Result<KeyData, String> {
    if signature.len() as u64 > KEY_LIMIT {
        return Err("the signature file is too long".to_owned());
    }
    let signature = SshSig::from_pem(signature)
        .map_err(|error| format!("it is not an OpenSSH signature ({error})"))?;
    if signature.namespace() != NAMESPACE {
        let namespace = printable(signature.namespace());
        return Err(format!("it was made for {namespace:?} and not for {NAMESPACE}"));
    }
    let key = PublicKey::from(signature.public_key().clone());
    if key.algorithm() != Algorithm::Ed25519 {
        let kind = printable(key.algorithm().as_str());
        return Err(format!(
            "it is by a key of kind {kind}, which only ssh-keygen -Y verify can judge"
        ));
    }
    key.verify(NAMESPACE, sums, &signature).map_err(|_| {
        "it does not fit SHA256SUMS: the list or the signature was changed".to_owned()
    })?;
    Ok(key.key_data().clone())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        process::{Command, Output, Stdio},
    };

    use proptest::prelude::*;

    use super::*;

    /// Runs ssh-keygen; a machine without it fails these tests, since nothing else can vouch for them.
    pub(crate) fn ssh_keygen(dir: &Path, arguments: &[&str], stdin: Stdio) -> Output {
        Command::new("ssh-keygen")
            .args(arguments)
            .current_dir(dir)
            .stdin(stdin)
            .output()
            .expect("this test needs ssh-keygen (Debian: openssh-client)")
    }

    /// A folder with a list, and a key pair `key`, `key.pub` of the given kind.
    fn folder(kind: &str, passphrase: &str) -> tempfile::TempDir {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join(SUMS), "a list\n").unwrap();
        let arguments = ["-q", "-t", kind, "-N", passphrase, "-C", "lab@example", "-f", "key"];
        let made = ssh_keygen(temp.path(), &arguments, Stdio::null());
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        temp
    }

    fn verify_with_ssh_keygen(dir: &Path) -> Output {
        let public = fs::read_to_string(dir.join("key.pub")).unwrap();
        fs::write(dir.join("allowed_signers"), format!("lab@example {public}")).unwrap();
        let sums = File::open(dir.join(SUMS)).unwrap();
        let arguments =
            ["-Y", "verify", "-f", "allowed_signers", "-I", "lab@example", "-n", NAMESPACE];
        let arguments = [&arguments[..], &["-s", SUMS_SIGNATURE]].concat();
        ssh_keygen(dir, &arguments, Stdio::from(sums))
    }

    #[test]
    fn ssh_keygen_accepts_the_signature_and_refuses_another_list() {
        let temp = folder("ed25519", "");
        let key = SigningKey::load(&temp.path().join("key")).unwrap();
        key.sign_sums(temp.path()).unwrap();
        let verified = verify_with_ssh_keygen(temp.path());
        let said = String::from_utf8_lossy(&verified.stdout).into_owned();
        assert!(verified.status.success(), "{said} {}", String::from_utf8_lossy(&verified.stderr));
        assert!(said.contains(&key.fingerprint()), "{said}");
        assert!(matches!(key.sign_sums(temp.path()), Err(SignatureError::Write(_))));

        fs::write(temp.path().join(SUMS), "another list\n").unwrap();
        assert!(!verify_with_ssh_keygen(temp.path()).status.success());
    }

    #[test]
    fn a_signature_of_ssh_keygen_is_accepted_only_for_this_purpose_and_list() {
        let temp = folder("ed25519", "");
        for (namespace, good) in [(NAMESPACE, true), ("file", false)] {
            let _ = fs::remove_file(temp.path().join(SUMS_SIGNATURE));
            let arguments = ["-q", "-Y", "sign", "-f", "key", "-n", namespace, SUMS];
            let signed = ssh_keygen(temp.path(), &arguments, Stdio::null());
            assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
            let signature = fs::read(temp.path().join(SUMS_SIGNATURE)).unwrap();
            assert_eq!(check(&signature, b"a list\n").is_ok(), good);
            assert!(check(&signature, b"A list\n").is_err());
        }
    }

    #[test]
    fn keys_that_cannot_or_should_not_sign_are_refused_with_advice() {
        let temp = folder("ed25519", "secret");
        let path = temp.path().join("key");
        let text = SigningKey::load(&path).unwrap_err().to_string();
        assert!(text.contains("encrypted") && text.contains("ssh-keygen -p"), "{text}");

        let temp = folder("ed25519", "");
        let path = temp.path().join("key");
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let text = SigningKey::load(&path).unwrap_err().to_string();
            assert!(text.contains("chmod 600"), "{text}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        let shown = format!("{:?}", SigningKey::load(&path).unwrap());
        assert!(shown.starts_with("SigningKey(SHA256:"), "{shown}");

        let temp = folder("ecdsa", "");
        let text = SigningKey::load(&temp.path().join("key")).unwrap_err().to_string();
        assert!(text.contains("only ssh-ed25519"), "{text}");

        let no_key = temp.path().join("no-key");
        fs::write(&no_key, "hello").unwrap();
        fs::set_permissions(&no_key, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(SigningKey::load(&no_key), Err(SignatureError::Key { .. })));
        fs::write(&no_key, vec![b'x'; 70_000]).unwrap();
        assert!(matches!(SigningKey::load(&no_key), Err(SignatureError::ReadKey { .. })));
        assert!(matches!(SigningKey::load(temp.path()), Err(SignatureError::ReadKey { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            use base64::{Engine as _, prelude::BASE64_STANDARD};
            prop_assert!(check(&body, b"").is_err());
            let inner = [b"SSHSIG\0\0\0\x01".as_slice(), &body].concat();
            let pem = format!(
                "-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n",
                BASE64_STANDARD.encode(inner)
            );
            prop_assert!(check(pem.as_bytes(), b"").is_err());
        }
    }
}
