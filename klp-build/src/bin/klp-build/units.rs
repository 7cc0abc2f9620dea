//! Two builds of a C or C++ project that has a compile_commands.json, which says how each of its
//! files is compiled: what meson, CMake (`-DCMAKE_EXPORT_COMPILE_COMMANDS=ON`) and `bear -- make`
//! write.
//!
//! Every file is compiled once, because a constant that changes has users anywhere; and once more if
//! the diff changes one of its inputs.

use crate::rebuild::{self, FLAGS, Project};
use crate::step::Step;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Where the file may be, from the sources.
const PLACES: [&str; 2] = ["compile_commands.json", "build/compile_commands.json"];

/// Arguments that say where to write what depends on what, and how many words each has.
const DEPENDENCIES: [(&str, usize); 9] = [
    ("-M", 1),
    ("-MM", 1),
    ("-MD", 1),
    ("-MMD", 1),
    ("-MP", 1),
    ("-MG", 1),
    ("-MF", 2),
    ("-MT", 2),
    ("-MQ", 2),
];

/// Endings of files that are compiled on their own.
const SOURCES: [&str; 8] = ["c", "cc", "cpp", "cxx", "c++", "C", "S", "s"];

/// A compile_commands.json: how each file is compiled.
pub(crate) struct Units {
    path: PathBuf,
    units: Vec<Unit>,
}

/// A file that is compiled on its own.
struct Unit {
    /// What is compiled: in the copy, if it is one of the sources.
    source: PathBuf,
    /// Where the object file goes, in the folder of a build.
    object: PathBuf,
    /// Where the compiler is run.
    directory: PathBuf,
    /// The compiler, and its arguments without the output.
    arguments: Vec<String>,
}

/// What a compiler read for each unit; `None` if it does not say so.
type Inputs = Vec<Option<BTreeSet<PathBuf>>>;

impl Units {
    /// Reads the file of the sources in `from`, to compile those that were copied to `to`. `None` if
    /// there is no such file.
    pub(crate) fn find(from: &Path, to: &Path) -> Result<Option<Self>> {
        let mut places = PLACES.iter().map(|place| from.join(place));
        let Some(path) = places.find(|path| path.is_file()) else {
            return Ok(None);
        };
        let units = Self::read(&path, from, to);
        let units = units.with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some(Self { path, units }))
    }

    fn read(path: &Path, from: &Path, to: &Path) -> Result<Vec<Unit>> {
        let text = fs::read_to_string(path)?;
        let entries: Vec<Value> = serde_json::from_str(&text)?;
        ensure!(!entries.is_empty(), "it has no entries");
        let moves = Moves::new(from, to)?;
        let mut units: Vec<Unit> = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let unit = Unit::read(entry, &moves);
            let mut unit = unit.with_context(|| format!("its entry {}", index + 1))?;
            if units.iter().any(|other| other.object == unit.object) {
                unit.object.set_extension(format!("{index}.o"));
            }
            units.push(unit);
        }
        Ok(units)
    }

    /// Makes both builds, of the copy in `copy`.
    pub(crate) fn build(&self, project: &Project<'_>, copy: &Path, out: &Path) -> Result<()> {
        let (original, patched) = (out.join("original"), out.join("patched"));
        let all: Vec<_> = (0..self.units.len()).collect();
        let shown = self.path.display();
        let inputs = self.compile(&all, &original, &format!("compiling as {shown} says"))?;

        let before = files(copy)?;
        let changed = project.apply(copy)?;
        let changed: BTreeSet<_> = changed.iter().map(|file| copy.join(file)).collect();
        // The compiler may find what is new where it found something else.
        let has_new = changed.iter().any(|file| !before.contains(file));
        let again = |unit: &usize| match &inputs[*unit] {
            Some(inputs) => has_new || !inputs.is_disjoint(&changed),
            None => true,
        };
        let (again, same): (Vec<_>, Vec<_>) = all.iter().partition(|unit| again(unit));
        let after = self.compile(&again, &patched, "compiling what it changes")?;
        for unit in same {
            let object = &self.units[unit].object;
            rebuild::copy(&original.join(object), &patched.join(object))?;
        }

        self.refuse_twice(&again, copy, [&original, &patched])?;
        let read: BTreeSet<_> = inputs.iter().chain(&after).flatten().flatten().collect();
        for file in &changed {
            if read.contains(file) || self.units.iter().any(|unit| unit.source == *file) {
                continue;
            }
            let shown = file.strip_prefix(copy).unwrap_or(file).display();
            let is_source = file
                .extension()
                .is_some_and(|ending| SOURCES.iter().any(|source| ending == *source));
            ensure!(
                !is_source,
                "{shown} is changed, but {} does not say how it is compiled: add it there, or take \
                 it out of the diff, or say behind -- what builds the project",
                self.path.display()
            );
            eprintln!("{shown} is no input of what is compiled: its change is left out");
        }
        Ok(())
    }

    /// Refuses what is compiled for several programs, if it changed: the patch is for one.
    fn refuse_twice(&self, again: &[usize], copy: &Path, builds: [&Path; 2]) -> Result<()> {
        let mut changed: BTreeMap<&Path, &Unit> = BTreeMap::new();
        for unit in again.iter().map(|unit| &self.units[*unit]) {
            let [before, after] = builds.map(|build| fs::read(build.join(&unit.object)));
            if before? == after? {
                continue;
            }
            if changed.insert(&unit.source, unit).is_some() {
                bail!(
                    "{} is compiled in several ways: leave in {} how it is for the program that \
                     runs",
                    unit.source
                        .strip_prefix(copy)
                        .unwrap_or(&unit.source)
                        .display(),
                    self.path.display()
                );
            }
        }
        Ok(())
    }

    /// Compiles `units` into the folder `to`, as many at a time as there are processors. Returns
    /// what was read for each.
    fn compile(&self, units: &[usize], to: &Path, what: &str) -> Result<Inputs> {
        let step = Step::of(what, units.len());
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Ok(vec![None; units.len()]));
        let work = || {
            loop {
                let index = next.fetch_add(1, Relaxed);
                let Some(unit) = units.get(index) else { break };
                let result = self.units[*unit].compile(to);
                // It is locked for an assignment, which does not panic.
                let Ok(mut done) = done.lock() else { break };
                match (result, &mut *done) {
                    (Ok(inputs), Ok(all)) => all[index] = inputs,
                    (Err(error), Ok(_)) => *done = Err(error),
                    (_, Err(_)) => break,
                }
                step.advance();
            }
        };
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 1..workers.min(units.len()) {
                scope.spawn(work);
            }
            work();
        });
        let done = done.into_inner();
        done.unwrap_or_else(|_| bail!("a thread that compiles has panicked"))
    }
}

impl Unit {
    fn read(entry: &Value, moves: &Moves) -> Result<Self> {
        let text = |name: &str| entry[name].as_str();
        let directory = text("directory").context("it has no 'directory'")?;
        let file = text("file").context("it has no 'file'")?;
        let words: Vec<String> = match (&entry["arguments"], text("command")) {
            (Value::Array(words), _) => {
                let words = words.iter().map(|word| word.as_str().map(str::to_owned));
                words.collect::<Option<_>>()
            }
            (_, Some(command)) => shlex::split(command),
            _ => None,
        }
        .context("it has neither 'arguments' nor a 'command' that a shell would understand")?;
        ensure!(!words.is_empty(), "its command is empty");
        let directory = moves.apply(directory);
        let source = Path::new(&directory).join(moves.apply(file));
        let source = source
            .canonicalize()
            .with_context(|| source.display().to_string())?;
        let object = source.strip_prefix(&moves.to);
        let object = object.or_else(|_| source.strip_prefix("/"))?;
        Ok(Self {
            object: object.with_extension("o"),
            source,
            directory: directory.into(),
            arguments: arguments(&words, moves),
        })
    }

    /// Compiles it into the folder `to`. Returns what the compiler read.
    fn compile(&self, to: &Path) -> Result<Option<BTreeSet<PathBuf>>> {
        let [program, arguments @ ..] = &self.arguments[..] else {
            bail!("no compiler");
        };
        let object = to.join(&self.object);
        if let Some(folder) = object.parent() {
            fs::create_dir_all(folder)?;
        }
        let list = object.with_extension("d");
        let mut command = Command::new(program);
        command
            .args(arguments)
            .args(FLAGS)
            .args(["-c", "-MD", "-MF"])
            .args([list.as_os_str(), OsStr::new("-o"), object.as_os_str()])
            .current_dir(&self.directory);
        rebuild::run(&mut command, &self.arguments.join(" "))?;
        // Of assembly that is not preprocessed, nothing is said.
        let Ok(text) = fs::read_to_string(list) else {
            return Ok(None);
        };
        let inputs = inputs(&text).map(|input| self.directory.join(input).canonicalize());
        Ok(inputs.collect::<Result<_, _>>().ok())
    }
}

/// The arguments of a compiler, without the output and what is written beside it.
fn arguments(words: &[String], moves: &Moves) -> Vec<String> {
    let mut kept = Vec::new();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let list = DEPENDENCIES.iter().find(|(name, _)| word == name);
        if word == "-o" || list.is_some_and(|(_, count)| *count == 2) {
            rest.next();
        } else if list.is_none() && !word.starts_with("-o") && !word.starts_with("-Wp,-M") {
            kept.push(moves.apply(word));
        }
    }
    kept.push(moves.as_before());
    kept
}

/// The inputs that a compiler lists for make: `shop.o: shop.c \` and so on.
fn inputs(list: &str) -> impl Iterator<Item = String> {
    let list = list.split_once(": ").map_or("", |(_, inputs)| inputs);
    let mut inputs = vec![String::new()];
    let mut letters = list.chars().peekable();
    while let Some(letter) = letters.next() {
        let next = letters.peek().copied();
        match (letter, next) {
            ('\\', Some('\n')) | ('\n', _) => inputs.push(String::new()),
            ('\\', Some(' ' | '#')) | ('$', Some('$')) => {
                letters.next();
                if let (Some(last), Some(next)) = (inputs.last_mut(), next) {
                    last.push(next);
                }
            }
            (' ', _) => inputs.push(String::new()),
            _ => {
                if let Some(last) = inputs.last_mut() {
                    last.push(letter);
                }
            }
        }
    }
    inputs.into_iter().filter(|input| !input.is_empty())
}

/// The sources are in another place than the compile commands say.
struct Moves {
    /// What they may be called.
    from: [String; 2],
    to: PathBuf,
}

impl Moves {
    fn new(from: &Path, to: &Path) -> Result<Self> {
        let names = [std::path::absolute(from)?, from.canonicalize()?];
        let from = names.map(|name| name.to_string_lossy().into_owned());
        let to = to.to_path_buf();
        Ok(Self { from, to })
    }

    /// An argument, with the place that the sources are in now.
    fn apply(&self, word: &str) -> String {
        for from in &self.from {
            // `-I/home/me/shop/include` names a folder of /home/me/shop, and of no /home/me/shopping.
            let ends = |at: usize| word[at + from.len()..].starts_with('/') || word.ends_with(from);
            if let Some(at) = word.find(from).filter(|at| ends(*at)) {
                let (before, after) = (&word[..at], &word[at + from.len()..]);
                return format!("{before}{}{after}", self.to.display());
            }
        }
        word.to_owned()
    }

    /// Has `__FILE__` and debug information name the place that the sources came from.
    fn as_before(&self) -> String {
        let [from, _] = &self.from;
        format!("-ffile-prefix-map={}={from}", self.to.display())
    }
}

/// All files below `folder`.
fn files(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else {
                found.insert(entry.path());
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_compiler_lists_is_read() {
        let list =
            "out/shop.o: src/shop.c include/my\\ shop.h \\\n /usr/include/a$$b.h \\\n c\\#.h\n";
        let read: Vec<_> = inputs(list).collect();
        let names = [
            "src/shop.c",
            "include/my shop.h",
            "/usr/include/a$b.h",
            "c#.h",
        ];
        assert_eq!(read, names);
        assert_eq!(inputs("").count(), 0);
    }

    #[test]
    fn the_output_is_ours_and_the_place_that_of_the_copy() {
        let moves = Moves {
            from: ["/home/me/shop", "/disk/shop"].map(str::to_owned),
            to: "/tmp/copy".into(),
        };
        let words = "cc -O2 -I/home/me/shop/include -I/home/me/shopping -DX=/disk/shop -MD -MF x.d \
                     -Wp,-MMD,y.d -o shop.o -oshop.o -c /disk/shop/shop.c";
        let words: Vec<_> = words.split(' ').map(str::to_owned).collect();
        assert_eq!(
            arguments(&words, &moves).join(" "),
            "cc -O2 -I/tmp/copy/include -I/home/me/shopping -DX=/tmp/copy -c /tmp/copy/shop.c \
             -ffile-prefix-map=/tmp/copy=/home/me/shop"
        );
    }
}
