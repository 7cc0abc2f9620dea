//! Waiting for the end of a transition, with a progress bar on a terminal and plain lines
//! otherwise.

use crate::show::{Show, harmless};
use crate::target::Target;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use klp_os_linux::control::{Direction, PatchInfo, Reply, Request};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed,
    Unfinished,
}

impl Outcome {
    /// How both together ended.
    pub(crate) fn worse(self, other: Self) -> Self {
        match (self, other) {
            (Self::Failed, _) | (_, Self::Failed) => Self::Failed,
            (Self::Unfinished, _) | (_, Self::Unfinished) => Self::Unfinished,
            _ => Self::Done,
        }
    }
}

/// How often the process is asked at first, and how often at least.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Follows the one transition of `patches` that was just started, as they show, to its end.
pub(crate) fn bring_on(
    target: &Target,
    show: &Show,
    patches: &[PatchInfo],
    timeout: Duration,
) -> Result<Outcome> {
    let first = patches.first().context("the process named no patch")?;
    let Some(done) = follow(target, show, first.clone(), timeout)? else {
        return Ok(Outcome::Unfinished);
    };
    show.finished(&done);
    if let others @ [_, ..] = &patches[1..] {
        let now = target.status()?;
        others
            .iter()
            .filter_map(|other| now.iter().find(|patch| patch.name == other.name))
            .for_each(|patch| show.finished(patch));
    }
    if done.enabled == first.enabled {
        return Ok(Outcome::Done);
    }
    show.error("somebody turned the transition round", None);
    Ok(Outcome::Failed)
}

/// Follows the transition of the patch called `name`, or whichever there is.
pub(crate) fn watch(
    target: &Target,
    show: &Show,
    name: Option<&str>,
    timeout: Duration,
) -> Result<Outcome> {
    let fits =
        |patch: &PatchInfo| name.map_or(patch.transition.is_some(), |name| patch.name == name);
    let patch = target.status()?.into_iter().find(fits);
    match (patch, name) {
        (None, None) => {
            show.line("no patch is in transition");
            Ok(Outcome::Done)
        }
        (patch, name) => {
            let patch = patch
                .with_context(|| format!("there is no patch '{}'", name.unwrap_or_default()))?;
            match follow(target, show, patch, timeout)? {
                None => Ok(Outcome::Unfinished),
                Some(patch) => {
                    show.finished(&patch);
                    Ok(Outcome::Done)
                }
            }
        }
    }
}

/// Asks again and again until the transition of `patch` is over, and returns it as it is then;
/// `None` if that takes too long.
fn follow(
    target: &Target,
    show: &Show,
    mut patch: PatchInfo,
    timeout: Duration,
) -> Result<Option<PatchInfo>> {
    let begin = Instant::now();
    let mut display = Display::new(show);
    let mut pause = FIRST_PAUSE;
    while patch.transition.is_some() {
        display.show(show, &patch);
        if begin.elapsed() >= timeout {
            display.end();
            explain(target, show, &patch, timeout)?;
            return Ok(None);
        }
        std::thread::sleep(pause.min(timeout.saturating_sub(begin.elapsed())));
        pause = LONGEST_PAUSE.min(2 * pause);
        let now = target
            .status()?
            .into_iter()
            .find(|other| other.name == patch.name);
        patch = now.with_context(|| format!("patch '{}' is gone", patch.name))?;
    }
    display.end();
    Ok(Some(patch))
}

/// Says who holds the transition back, and what can be done.
fn explain(target: &Target, show: &Show, patch: &PatchInfo, timeout: Duration) -> Result<()> {
    let name = &patch.name;
    if let Reply::Blockers { blockers } = target.ask(&Request::Blockers {
        patch: name.clone(),
    })? {
        show.unfinished(patch, timeout, &blockers);
    }
    Ok(())
}

/// What is seen of a transition under way.
struct Display {
    bar: Option<ProgressBar>,
    /// The most tasks that were ever waited for: they are the whole.
    most: usize,
    last: Option<(Direction, usize)>,
}

impl Display {
    fn new(show: &Show) -> Self {
        let bar = (show.is_live() && !show.json && std::io::stderr().is_terminal()).then(|| {
            let template = "{spinner} {msg} [{bar:30}] {pos}/{len} threads switched, {elapsed}";
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(0).with_style(style.progress_chars("=> "));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self {
            bar,
            most: 0,
            last: None,
        }
    }

    fn show(&mut self, show: &Show, patch: &PatchInfo) {
        let Some(direction) = patch.transition else {
            return;
        };
        if self.last == Some((direction, patch.pending)) {
            return;
        }
        if self.last.is_some_and(|(last, _)| last != direction) {
            self.most = 0; // It turned round.
        }
        self.last = Some((direction, patch.pending));
        self.most = self.most.max(patch.pending);
        let doing = if direction == Direction::Patching {
            "enabling"
        } else {
            "disabling"
        };
        match &self.bar {
            None => show.progress(patch, doing),
            Some(bar) => {
                bar.set_message(format!("{doing} '{}'", harmless(&patch.name)));
                bar.set_length(self.most as u64);
                bar.set_position((self.most - patch.pending) as u64);
                bar.tick();
            }
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
