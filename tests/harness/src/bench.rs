//! `cargo bench-agent`: the agent beside the programs that people would use without it.
//!
//! Purpose: measure, never judge: it prints a table and asserts nothing. Every comparison runs in turns
//! (ours, theirs, ours, theirs…) on a warm cache, and the ratio is that of the medians of one run. Touches
//! a folder of the cache, in which it makes its corpora.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    damage,
    images::{Ext, Image},
    memory, tools,
};

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Folders of rules; each is measured beside yr. The first is taken to be the real pack.
    #[arg(long)]
    pub rules: Vec<PathBuf>,
    /// The tree of real files.
    #[arg(long, default_value = "/usr/lib")]
    pub tree: PathBuf,
    /// The largest number of small files.
    #[arg(long, default_value_t = 1_000_000)]
    pub files: u64,
    /// How many files of 1 GiB.
    #[arg(long, default_value_t = 10)]
    pub large: u64,
    /// Runs of each program; the median counts.
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// Measure this agent, such as the one in `dist/`, and build none.
    #[arg(long)]
    pub agent: Option<PathBuf>,
    /// Measure only the parts named: rules, small, large, start, view.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
}

/// The time and memory of a program.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    time: Duration,
    /// Highest sum over the program's processes, shared pages divided among them, in MiB.
    memory: u64,
}

/// Runs the benchmark and prints its table.
///
/// # Errors
/// A program is missing, or one of the runs fails.
pub fn run(options: &Options) -> Result<()> {
    tools::ensure(tools::BENCH)?;
    let agent = options.agent.clone().map_or_else(build_agent, Ok)?;
    let bench = Bench { agent, yr: find_yr()?, work: work_folder()?, options };
    println!("{:<58} {:>10} {:>10} {:>7}", "", "agent", "other", "ratio");
    let wanted = |part: &str| options.only.is_empty() || options.only.iter().any(|o| o == part);
    if wanted("rules") {
        bench.rules()?;
    }
    if wanted("large") {
        bench.large()?;
    }
    if wanted("start") {
        bench.start()?;
    }
    if wanted("view") {
        bench.view()?;
    }
    if wanted("small") {
        bench.small()?;
    }
    Ok(())
}

struct Bench<'o> {
    agent: PathBuf,
    yr: PathBuf,
    work: PathBuf,
    options: &'o Options,
}

impl Bench<'_> {
    /// A scan into a bundle that is thrown away.
    fn scan(&self, evidence: &Path, more: &[&str]) -> Result<Cost> {
        let out = self.work.join("bundle");
        remove(&out)?;
        let mut command = Command::new(&self.agent);
        command
            .arg("scan")
            .arg(evidence)
            .arg("--out")
            .arg(&out)
            .args(["--threads", "2"])
            .args(more);
        // Findings and gaps are what a scan may end with.
        let cost = measure(&mut command, &[0, 3])?;
        remove(&out)?;
        Ok(cost)
    }

    fn yr(&self, rules: &Path, evidence: &Path) -> Result<Cost> {
        let mut command = Command::new(&self.yr);
        command.args(["scan", "--threads", "2", "--recursive", "--disable-warnings"]);
        // The five variables that the agent gives rules too.
        for variable in ["filename", "filepath", "extension", "filetype", "owner"] {
            command.args(["--define", &format!("{variable}=\"\"")]);
        }
        measure(command.args([rules, evidence]), &[0])
    }

    /// Same rules, same tree, same threads.
    fn rules(&self) -> Result<()> {
        let tree = &self.options.tree;
        self.scan(tree, &["--no-entropy"])?;
        for rules in &self.options.rules {
            let text = rules.to_string_lossy();
            let name = rules.file_name().unwrap_or_default().to_string_lossy();
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..self.options.runs {
                ours.push(self.scan(tree, &["--rules", &text])?);
                theirs.push(self.yr(rules, tree)?);
            }
            let title = format!("{name} on {}: agent / yr", tree.display());
            row(&title, &ours, &theirs);
        }
        let Some(rules) = self.options.rules.first() else { return Ok(()) };
        let text = rules.to_string_lossy();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..self.options.runs {
            ours.push(self.scan(tree, &["--rules", &text])?);
            let mut sum = self.yr(rules, tree)?;
            let mut hash = Command::new("sha256deep");
            sum.time += measure(hash.args(["-j2", "-r"]).arg(tree), &[0])?.time;
            let mut list = Command::new("find");
            list.arg(tree).args(["-printf", "%p %s %m %U %G %i %n %A@ %T@ %C@\\n"]);
            sum.time += measure(&mut list, &[0])?.time;
            theirs.push(sum);
        }
        row("  … / yr + sha256deep -j2 + find -printf", &ours, &theirs);
        Ok(())
    }

    /// Files above the in-memory limit, against the speed of the digest itself.
    fn large(&self) -> Result<()> {
        let corpus = self.work.join("large");
        let bytes = make_large(&corpus, self.options.large)?;
        for (title, more) in [("--no-entropy", &["--no-entropy"][..]), ("with entropy", &[])] {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..self.options.runs {
                ours.push(rate(bytes, self.scan(&corpus, more)?.time));
                theirs.push(openssl_rate()?);
            }
            let (a, b) = (middle(ours), middle(theirs));
            println!(
                "{:<58} {a:>9.2}G {b:>9.2}G {:>7.2}",
                format!("{} GiB in 1 GiB files, {title}: GB/s / openssl", self.options.large),
                a / b
            );
        }
        Ok(())
    }

    /// A large file through the view that a journal is replayed in, against the plain one of the same image.
    /// Each scan sees it through a new device, so that only the image itself is in the cache.
    fn view(&self) -> Result<()> {
        if !tools::is_root() {
            println!("view: not measured without root, which mounting needs");
            return Ok(());
        }
        let corpus = self.work.join("view");
        remove(&corpus)?;
        let bytes = make_large(&corpus.join("content"), 1)?;
        let image = Image::new(&corpus, "image", bytes + bytes / 4)
            .ext(Ext::Ext4, &corpus.join("content"))?;
        let dirty = corpus.join("dirty");
        damage::dirty_copy(&image, &dirty)?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..=self.options.runs {
            theirs.push(rate(bytes, self.scan(&dirty, &["--no-entropy", "--no-replay"])?.time));
            ours.push(rate(bytes, self.scan(&dirty, &["--no-entropy"])?.time));
        }
        let (a, b) = (middle(ours), middle(theirs));
        let title = "1 GiB in a replayed view: GB/s / plain view";
        println!("{title:<58} {a:>9.2}G {b:>9.2}G {:>7.2}", a / b);
        remove(&corpus)
    }

    /// How soon a scan is ready to begin.
    fn start(&self) -> Result<()> {
        let empty = self.work.join("empty");
        fs::create_dir_all(&empty)?;
        let rules = make_rules(&self.work.join("rules-5000.yar"))?;
        let digests = make_digests(&self.work.join("digests.txt"))?;
        let rules = rules.to_string_lossy();
        let digests = digests.to_string_lossy();
        let cases: [(&str, Vec<&str>); 3] = [
            ("start: an empty folder, no rules", vec![]),
            ("start: 5,000 rules, compiled before", vec!["--rules", &rules]),
            ("start: 1,000,000 SHA-256 indicators", vec!["--indicators", &digests]),
        ];
        for (title, more) in cases {
            self.scan(&empty, &more)?;
            let costs = (0..self.options.runs).map(|_| self.scan(&empty, &more));
            let costs: Vec<_> = costs.collect::<Result<_>>()?;
            println!("{title:<58} {:>9.3}s {:>7} MiB", median(&costs).as_secs_f64(), peak(&costs));
        }
        Ok(())
    }

    /// Many small files: the time of one, and how it changes with their number.
    fn small(&self) -> Result<()> {
        let corpus = self.work.join("small");
        let mut counts = vec![10_000, 100_000, self.options.files];
        counts.dedup();
        make_small(&corpus, self.options.files)?;
        for count in counts {
            let part = corpus.join(format!("{count}"));
            link_part(&corpus.join("all"), &part, count)?;
            let costs: Vec<_> =
                (0..self.options.runs).map(|_| self.scan(&part, &[])).collect::<Result<_>>()?;
            let each = median(&costs).as_secs_f64() * 1e6 / count as f64;
            println!(
                "{:<58} {:>8.2}µs {:>7} MiB",
                format!("{count} small files, no rules: time a file, memory"),
                each,
                peak(&costs)
            );
        }
        if let Some(rules) = self.options.rules.first() {
            let text = rules.to_string_lossy();
            // yr takes minutes for a million; a tenth tells the same.
            let count = self.options.files.min(100_000);
            let part = corpus.join(format!("{count}"));
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..self.options.runs {
                ours.push(self.scan(&part, &["--rules", &text])?);
                theirs.push(self.yr(rules, &part)?);
            }
            row(&format!("{count} small files, rules: agent / yr"), &ours, &theirs);
        }
        Ok(())
    }
}

/// Prints a comparison: medians, their ratio, the spread of ours, and both peaks of memory.
fn row(title: &str, ours: &[Cost], theirs: &[Cost]) {
    let (a, b) = (median(ours).as_secs_f64(), median(theirs).as_secs_f64());
    println!("{title:<58} {a:>9.2}s {b:>9.2}s {:>7.2}", a / b);
    let spread = |costs: &[Cost]| {
        let times = || costs.iter().map(|cost| cost.time.as_secs_f64());
        (times().fold(f64::MAX, f64::min), times().fold(0.0, f64::max))
    };
    let ((low, high), (their_low, their_high)) = (spread(ours), spread(theirs));
    println!(
        "    {low:.2}–{high:.2} s, {their_low:.2}–{their_high:.2} s; peak memory {} MiB, {} MiB",
        peak(ours),
        peak(theirs)
    );
}

fn median(costs: &[Cost]) -> Duration {
    let mut times: Vec<_> = costs.iter().map(|cost| cost.time).collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn middle(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or_default()
}

fn peak(costs: &[Cost]) -> u64 {
    costs.iter().map(|cost| cost.memory).max().unwrap_or(0)
}

fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e9
}

/// Runs a command to its end, watching its memory.
fn measure(command: &mut Command, good: &[i32]) -> Result<Cost> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begun = Instant::now();
    let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
    let watch = memory::Watch::start(child.id());
    let status = child.wait()?;
    let time = begun.elapsed();
    let memory = watch.peak() >> 20;
    match status.code() {
        Some(code) if good.contains(&code) => Ok(Cost { time, memory }),
        _ => bail!("{command:?} ended with {status}"),
    }
}

/// What two processes of openssl digest together, in GB/s, by its own account.
fn openssl_rate() -> Result<f64> {
    let mut command = Command::new("openssl");
    command.args([
        "speed", "-multi", "2", "-seconds", "2", "-bytes", "131072", "-mr", "-evp", "sha256",
    ]);
    let output = command.stderr(Stdio::null()).output().context("start openssl")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // `+F:<n>:sha256:<bytes a second>` is the sum over the processes.
    let last =
        text.lines().rfind(|line| line.starts_with("+F:")).context("openssl said nothing")?;
    let rate: f64 =
        last.rsplit(':').next().unwrap_or_default().parse().context("openssl's rate")?;
    Ok(rate / 1e9)
}

/// The agent as it ships.
fn build_agent() -> Result<PathBuf> {
    let mut build = tools::cargo();
    build.args(["build", "--release", "--package", "cleanroom-agent"]);
    build.current_dir(tools::workspace_root());
    if !build.status()?.success() {
        bail!("the agent does not build");
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| tools::workspace_root().join("target"), PathBuf::from);
    // The agent digests its own executable at every start, and ships without line numbers.
    let stripped = work_folder()?.join("cleanroom-agent");
    let mut strip = tools::command("strip")?;
    tools::run(
        strip
            .arg("--strip-debug")
            .arg("-o")
            .arg(&stripped)
            .arg(target.join("release/cleanroom-agent")),
    )?;
    Ok(stripped)
}

/// YARA-X's own scanner: the one that is installed here, else the project's.
fn find_yr() -> Result<PathBuf> {
    if let Some(found) = tools::find("yr") {
        return Ok(found);
    }
    tools::yr()
}

fn work_folder() -> Result<PathBuf> {
    let folder = tools::cache_dir()?.join("bench");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Bytes that compress as badly as programs do, the same in every run.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Files of 1 GiB; the bytes they have together.
fn make_large(folder: &Path, count: u64) -> Result<u64> {
    fs::create_dir_all(folder)?;
    for number in 0..count {
        let path = folder.join(format!("{number:02}"));
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == 1 << 30) {
            continue;
        }
        let block = noise(number + 1, 1 << 20);
        let mut file = fs::File::create(&path)?;
        for _ in 0..1024 {
            file.write_all(&block)?;
        }
    }
    Ok(count << 30)
}

/// Small files of 200 to 2,247 bytes, a thousand a folder.
fn make_small(folder: &Path, count: u64) -> Result<()> {
    let all = folder.join("all");
    let done = all.join(format!(".{count}"));
    if done.exists() {
        return Ok(());
    }
    for number in 0..count {
        let path = all.join(format!("{:04}", number / 1000));
        if number % 1000 == 0 {
            fs::create_dir_all(&path)?;
        }
        let length = 200 + usize::try_from(number * 37 % 2048)?;
        fs::write(path.join(format!("{:03}", number % 1000)), noise(number + 1, length))?;
    }
    fs::write(done, "")?;
    Ok(())
}

/// A folder with the first files of a corpus, as hard links.
fn link_part(all: &Path, part: &Path, count: u64) -> Result<()> {
    if part.exists() {
        return Ok(());
    }
    for folder in 0..count.div_ceil(1000) {
        let (from, to) = (all.join(format!("{folder:04}")), part.join(format!("{folder:04}")));
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            fs::hard_link(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// A pack of 5,000 rules, each with three texts of its own.
fn make_rules(path: &Path) -> Result<PathBuf> {
    let mut file = std::io::BufWriter::new(fs::File::create(path)?);
    for number in 0..5000_u64 {
        let text = |salt| {
            noise(number * 8 + salt, 12).iter().map(|b| format!("{b:02x}")).collect::<String>()
        };
        writeln!(
            file,
            "rule r{number} {{ strings: $a = \"{}\" $b = \"{}\" $c = {{ {} }} condition: 2 of them }}",
            text(1),
            text(2),
            text(3)
        )?;
    }
    file.flush()?;
    Ok(path.to_owned())
}

/// A list of a million digests.
fn make_digests(path: &Path) -> Result<PathBuf> {
    let mut file = std::io::BufWriter::new(fs::File::create(path)?);
    for number in 0..1_000_000_u64 {
        for byte in noise(number + 7, 32) {
            write!(file, "{byte:02x}")?;
        }
        file.write_all(b"\n")?;
    }
    file.flush()?;
    Ok(path.to_owned())
}
