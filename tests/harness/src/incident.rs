//! An incident, played: an instance that was broken into, in an emulated account, and the people who respond.
//!
//! Knows the emulator and nothing else: neither the settings and keys of whoever runs it, nor a way to AWS. Touches a
//! temporary folder.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::{
    emulators::{ACCESS_KEY, Kind, Moto, REGION, SECRET_KEY, World},
    response::{Program, ResponseStack},
    room::{self, Evidence, Site},
    tools::{command, run},
};

/// An address where nothing listens, for everything but the emulator.
const NOWHERE: &str = "http://127.0.0.1:1";

/// The programs of the incident's people.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `cleanroom-agent`.
    pub agent: PathBuf,
    /// `cleanroom`.
    pub cleanroom: PathBuf,
    /// `cleanroom-lambda`.
    pub lambda: PathBuf,
}

impl Programs {
    /// Those that were built with the tests that run now.
    ///
    /// # Errors
    /// Where they were not: `cargo test --workspace` builds them.
    pub fn beside_tests() -> Result<Self> {
        Ok(Self {
            agent: beside_tests("cleanroom-agent")?,
            cleanroom: beside_tests("cleanroom")?,
            lambda: beside_tests("cleanroom-lambda")?,
        })
    }
}

/// A program that was built with the tests that run now.
///
/// # Errors
/// Where it was not: `cargo test --workspace` builds it.
pub fn beside_tests(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("find this program")?;
    let folder = own.parent().and_then(Path::parent).context("find the target folder")?;
    let path = folder.join(name);
    ensure!(path.is_file(), "{} is not built: cargo build --workspace", path.display());
    Ok(path)
}

/// An instance with disks, and a responder's machine.
#[derive(Debug)]
pub struct Incident {
    /// The account.
    pub moto: Moto,
    /// What was built in it.
    pub world: World,
    /// The instance's disks, by their volumes.
    pub disks: BTreeMap<String, Evidence>,
    /// What a copy of the room's own root is to be written to, and the volume that it is.
    pub double: (String, PathBuf),
    programs: Programs,
    home: TempDir,
}

impl Incident {
    /// Builds the account and the disks, and puts the agent where `deploy` takes it from.
    ///
    /// # Errors
    /// Where an emulator does not start, or a tool refuses.
    pub fn begin(programs: Programs) -> Result<Self> {
        Self::on(room::disks, programs)
    }

    /// The same with other disks, the instance's root first: at least one less than the account's instance has volumes.
    ///
    /// # Errors
    /// Where an emulator does not start, or a tool refuses.
    pub fn on(
        disks: impl FnOnce(&Path) -> Result<Vec<Evidence>>,
        programs: Programs,
    ) -> Result<Self> {
        let home = tempfile::tempdir().context("create a home folder")?;
        let images = home.path().join("images");
        fs::create_dir(&images)?;
        let made = disks(&images)?;
        let moto = Moto::start()?;
        let world = World::build(&moto, Kind::Full)?;
        // One more for the room's own root, which is there only when the room is.
        let more = made.len() + 1 - world.volumes().len();
        let root = world.volumes().first().context("the instance has no volume")?.to_string();
        let mut volumes = world.add_volumes(more)?;
        volumes.retain(|volume| *volume != root);
        volumes.insert(0, root);
        let double = volumes.pop().context("the instance has no volumes")?;
        ensure!(volumes.len() == made.len(), "{} volumes for {} disks", volumes.len(), made.len());
        let disks = volumes.into_iter().zip(made).collect();
        let incident = Self {
            double: (double, images.join("double.img")),
            moto,
            world,
            disks,
            programs,
            home,
        };
        incident.pack()?;
        Ok(incident)
    }

    /// The agent without what only debuggers read: a room's memory is small.
    fn pack(&self) -> Result<()> {
        let folder = self.home.path().join("artifacts");
        fs::create_dir(&folder)?;
        let agent = folder.join("cleanroom-agent");
        run(command("strip")?.arg("-o").arg(&agent).arg(&self.programs.agent))?;
        self.settle("idle_seconds = 60\n")
    }

    /// Writes the responder's settings of the room, and others that are to follow.
    ///
    /// # Errors
    /// Where they can not be written.
    pub fn settle(&self, room: &str) -> Result<()> {
        // The emulated account has no machine images of Amazon's.
        let settings = format!("[room]\nimage = \"ami-0123456789abcdef0\"\n{room}");
        self.write("cleanroom.toml", settings.as_bytes())
    }

    /// Puts a file into the responder's folder.
    ///
    /// # Errors
    /// Where it can not be written.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        fs::write(self.home.path().join(name), content).with_context(|| format!("write {name}"))
    }

    /// The responder's folder.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The settings that lead to the emulator, and nowhere else.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", self.world.endpoint().to_owned()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("CLEANROOM_BUCKET", self.world.bucket().to_owned()),
            ("CLEANROOM_TOPIC", self.world.topic().to_owned()),
        ]
    }

    /// `cleanroom` as the responder runs it.
    #[must_use]
    pub fn cleanroom(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.cleanroom);
        command.env_clear().args(words).stdin(Stdio::null()).current_dir(self.home.path());
        command.env("HOME", self.home.path()).env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("HTTP_PROXY", NOWHERE).env("HTTPS_PROXY", NOWHERE).env("NO_PROXY", "127.0.0.1");
        for name in ["PATH", "TERM", "LANG", "LC_ALL", "NO_COLOR"] {
            if let Some(value) = env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(self.settings());
        command
    }

    /// Runs `cleanroom` to its end.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn ran(&self, words: &[&str]) -> Result<Output> {
        self.cleanroom(words).output().with_context(|| format!("run cleanroom {}", words.join(" ")))
    }

    /// The response stack in the same account, with the responder's own settings, and nothing that fails.
    ///
    /// # Errors
    /// Where an emulator does not start, or the stack can not be made.
    pub fn response_stack(&self, more: &str) -> Result<ResponseStack> {
        let settings = self.home.path().join("cleanroom.toml");
        let settings = fs::read_to_string(settings).context("read the settings")?;
        let program = Program::of(self.programs.lambda.clone(), format!("{more}{settings}"));
        ResponseStack::start(&program, &self.world)
    }

    /// The agent, whose libraries a room needs.
    #[must_use]
    pub fn agent(&self) -> &Path {
        &self.programs.agent
    }

    /// Where the room of a case stands.
    #[must_use]
    pub fn site(&self, case: &str) -> Site {
        let mut images: BTreeMap<_, _> =
            self.disks.iter().map(|(volume, disk)| (volume.clone(), disk.path.clone())).collect();
        images.insert(self.double.0.clone(), self.double.1.clone());
        Site::new(&self.moto, self.world.bucket(), case, images)
    }

    /// The SHA-256 of every disk, as lower-case hexadecimal digits by volume.
    ///
    /// # Errors
    /// Where one can not be read.
    pub fn digests(&self) -> Result<BTreeMap<String, String>> {
        let digest = |path: &Path| -> Result<String> {
            let told = run(command("sha256sum")?.arg("-b").arg(path))?;
            let told = String::from_utf8_lossy(&told).into_owned();
            let digest = told.split_whitespace().next().context("sha256sum says nothing")?;
            Ok(digest.trim_start_matches('\\').to_owned())
        };
        let paths = self.disks.iter().map(|(volume, disk)| (volume, &disk.path));
        let double = self.double.1.exists().then_some((&self.double.0, &self.double.1));
        paths.chain(double).map(|(volume, path)| Ok((volume.clone(), digest(path)?))).collect()
    }
}
