//! One command for several processes, all at the same time: a line for each.

use crate::args::Args;
use crate::process;
use crate::show::{Show, print};
use crate::target::Target;
use crate::transition::Outcome;
use crate::{run_on, target};
use anyhow::Result;
use klp_os_linux::control::Served;
use serde_json::{Value, json};

/// How many are asked at the same time.
const AT_ONCE: usize = 64;

/// Does what was asked for on each of the processes.
pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let mut all = Outcome::Done;
    each(
        Target::find_all(args)?,
        |served| one(args, served),
        |(pid, program, lines, outcome)| {
            if args.json {
                lines
                    .iter()
                    .for_each(|line| print(&with_process(line, pid, &program)));
            } else {
                let lines: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
                print(&format!("{pid} {program}: {}", lines.join("; ")));
            }
            all = all.worse(outcome);
        },
    );
    Ok(all)
}

/// Does `what` with all of `processes`, and gives the results to `then` in their order.
pub(crate) fn each<R: Send>(
    processes: Vec<Served>,
    what: impl Fn(Served) -> R + Sync,
    mut then: impl FnMut(R),
) {
    let mut processes = processes.into_iter();
    loop {
        let some: Vec<Served> = processes.by_ref().take(AT_ONCE).collect();
        if some.is_empty() {
            return;
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = some
                .into_iter()
                .map(|served| scope.spawn(|| what(served)))
                .collect();
            for thread in threads {
                match thread.join() {
                    Ok(result) => then(result),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
    }
}

fn one(args: &Args, served: Served) -> (u32, String, Vec<String>, Outcome) {
    let pid = served.pid();
    let program = process::program(pid);
    let show = Show::keeping(args.json);
    let outcome = run_on(&target::Target::Process(served), args, &show).unwrap_or_else(|error| {
        show.error(&format!("{error:#}"), None);
        Outcome::Failed
    });
    (pid, program, show.into_lines(), outcome)
}

/// An object of JSON, with the process that it is of.
fn with_process(object: &str, pid: u32, program: &str) -> String {
    let mut object = serde_json::from_str(object).unwrap_or(Value::Null);
    if let Value::Object(fields) = &mut object {
        fields.insert("pid".into(), json!(pid));
        fields.insert("program".into(), json!(program));
    }
    object.to_string()
}
