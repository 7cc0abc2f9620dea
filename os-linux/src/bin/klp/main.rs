//! `klp`: livepatches a running process that serves its engine (`Livepatch::serve`).

mod args;
mod process;
mod ps;
mod run;
mod several;
mod show;
mod target;
mod transition;

use anyhow::{Context, Result};
use args::{Args, Command};
use clap::CommandFactory;
use klp_os_linux::control::{Reply, Request, Source};
use show::Show;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use target::Target;
use transition::Outcome;

/// Something was refused or failed.
const FAILED: u8 = 1;
/// The transition did not finish in time; it goes on. (2 says that the command line is wrong.)
const UNFINISHED: u8 = 3;
/// A program cannot be started; as shells say it.
const NOT_STARTED: u8 = 127;

fn main() -> ExitCode {
    let args = Args::get();
    let show = Show::new(args.json);
    let done = match &args.command {
        Command::Ps => ps::list(&args),
        Command::Run {
            libklp,
            program,
            args,
        } => {
            let error = run::run(libklp.as_deref(), program, args);
            show.error(&format!("{error:#}"), None);
            return NOT_STARTED.into();
        }
        Command::Completions { shell } => completions(*shell),
        Command::Man { folder } => manual(folder.as_deref()),
        _ if args.several() => several::run(&args),
        _ => Target::find(&args).and_then(|target| run_on(&target, &args, &show)),
    };
    match done {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => FAILED.into(),
        Ok(Outcome::Unfinished) => UNFINISHED.into(),
        Err(error) => {
            show.error(&format!("{error:#}"), None);
            FAILED.into()
        }
    }
}

fn completions(shell: clap_complete::Shell) -> Result<Outcome> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "klp", &mut text);
    std::io::stdout().write_all(&text)?;
    Ok(Outcome::Done)
}

fn manual(folder: Option<&Path>) -> Result<Outcome> {
    match folder {
        Some(folder) => clap_mangen::generate_to(Args::command(), folder)
            .with_context(|| folder.display().to_string())?,
        None => clap_mangen::Man::new(Args::command()).render(&mut std::io::stdout())?,
    }
    Ok(Outcome::Done)
}

/// Does what was asked for, on one process.
fn run_on(target: &Target, args: &Args, show: &Show) -> Result<Outcome> {
    let request = match &args.command {
        Command::Ps
        | Command::Run { .. }
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::List
        | Command::Status { patch: None } => Request::Status,
        Command::Status { patch: Some(patch) } => return status_of(target, show, patch),
        Command::Watch { patch } => {
            return transition::watch(target, show, patch.as_deref(), args.timeout());
        }
        Command::Enable { patches } => Request::Enable {
            patches: patches
                .iter()
                .map(|patch| source(target, patch))
                .collect::<Result<_>>()?,
        },
        Command::Check { file } => Request::Check {
            file: target.path_for(file)?,
        },
        Command::Disable { patches } => Request::Disable {
            patches: patches.clone(),
        },
        Command::Reverse { patch } => Request::Reverse {
            patch: patch.clone(),
        },
        Command::Force { patch, .. } => Request::Force {
            patch: patch.clone(),
        },
        Command::Signal { patch } => Request::Signal {
            patch: patch.clone(),
        },
        Command::Blockers { patch } => Request::Blockers {
            patch: in_transition(target, patch.as_deref())?,
        },
        Command::Remove { patch } => Request::Remove {
            patch: patch.clone(),
        },
        Command::Ls { path } => Request::List { path: path.clone() },
        Command::Cat { path } => Request::Read { path: path.clone() },
        Command::Set { path, value } => Request::Write {
            path: path.clone(),
            value: value.clone(),
        },
    };
    let reply = target.ask(&request)?;
    match (&reply, &args.command) {
        (Reply::Refused { error, errno }, _) => {
            show.error(error, Some(*errno));
            Ok(Outcome::Failed)
        }
        (Reply::Patch { patch }, Command::Reverse { .. }) if !args.no_wait => {
            transition::bring_on(target, show, std::slice::from_ref(patch), args.timeout())
        }
        (Reply::Patches { patches }, _) if !args.no_wait => {
            transition::bring_on(target, show, patches, args.timeout())
        }
        (Reply::Preflight { ready: false, .. }, _) => {
            show.reply(&reply, &args.command);
            Ok(Outcome::Failed)
        }
        _ => {
            show.reply(&reply, &args.command);
            Ok(Outcome::Done)
        }
    }
}

/// What an argument of `enable` names.
fn source(target: &Target, patch: &Path) -> Result<Source> {
    let is_path = patch.components().count() > 1 || patch.extension().is_some();
    if is_path || patch.is_file() {
        return Ok(Source::File(target.path_for(patch)?));
    }
    Ok(Source::Loaded(patch.to_string_lossy().into_owned()))
}

fn status_of(target: &Target, show: &Show, name: &str) -> Result<Outcome> {
    let patch = target
        .status()?
        .into_iter()
        .find(|patch| patch.name == name);
    let patch = patch.with_context(|| format!("there is no patch '{name}'"))?;
    show.reply(
        &Reply::Patch { patch },
        &Command::Status {
            patch: Some(name.to_owned()),
        },
    );
    Ok(Outcome::Done)
}

/// The patch that was named, or the one in transition.
fn in_transition(target: &Target, named: Option<&str>) -> Result<String> {
    if let Some(name) = named {
        return Ok(name.to_owned());
    }
    let patch = target
        .status()?
        .into_iter()
        .find(|patch| patch.transition.is_some());
    Ok(patch.context("no patch is in transition")?.name)
}
