//! What a call costs on each way to its function, in one table from one run.
//!
//! Rounds of all ways alternate, so that a change of the machine's clock meets all of them; the
//! median round counts.

use core::ffi::{c_int, c_uint};
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::ops::Ops;
use klp_core::port::{Platform, Route, Routing, SymbolResolver, Tracer};
use klp_core::{Error, Func, Object, Patch, Poll};
use klp_os_linux::process::{Livepatch, Options};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

const ROUNDS: usize = 301;
const CALLS: c_uint = 20_000;

type Function = unsafe extern "C" fn(c_int) -> c_int;

unsafe extern "C" {
    fn call_plain(x: c_int) -> c_int;
    fn call_pad(x: c_int) -> c_int;
    fn call_settled(x: c_int) -> c_int;
    fn call_transition(x: c_int) -> c_int;
    fn call_handler(x: c_int) -> c_int;
    fn call_retour(x: c_int) -> c_int;
    fn new_call(x: c_int) -> c_int;
    fn call_loop(call: Function, times: c_uint) -> c_int;
    fn hold(fd: c_int) -> c_int;
    fn new_hold(fd: c_int) -> c_int;
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let livepatch = Livepatch::init(Options::default())?;
    let engine = livepatch.engine();

    let settled = engine
        .add(patch("settled", &[("call_settled", new_call)])?)
        .map_err(|refused| refused.error)?;
    let mut poll = engine.enable(settled)?;
    while let Poll::Waiting { .. } = poll {
        poll = engine.poll();
    }

    handler_always(livepatch)?;

    // SAFETY: both functions have the same type, and nobody calls them now.
    let detour =
        unsafe { retour::RawDetour::new(call_retour as *const (), new_call as *const ())? };
    // SAFETY: as above.
    unsafe { detour.enable()? };

    // A thread that sleeps in a function of the patch keeps this transition open.
    let (read, mut write) = std::io::pipe()?;
    let fd = read.as_raw_fd();
    // SAFETY: the function reads from a pipe.
    let holder = std::thread::spawn(move || unsafe { hold(fd) });
    std::thread::sleep(Duration::from_millis(50));
    let open = patch("open", &[("call_transition", new_call), ("hold", new_hold)])?;
    let open = engine.add(open).map_err(|refused| refused.error)?;
    let Poll::Waiting { .. } = engine.enable(open)? else {
        return Err("the transition did not stay open".into());
    };

    let ways: [(&str, Function); 6] = [
        ("plain call", call_plain),
        ("unpatched pad", call_pad),
        ("settled", call_settled),
        ("during a transition", call_transition),
        ("handler always in the way", call_handler),
        ("crate retour", call_retour),
    ];
    let medians = measure(&ways.map(|(_, function)| function));
    println!("{:<28}{:>10}{:>10}", "", "ns/call", "ratio");
    for ((name, _), median) in ways.iter().zip(&medians) {
        println!("{name:<28}{median:>10.2}{:>10.2}", median / medians[0]);
    }
    println!(
        "\nsettled / unpatched pad      {:.2}",
        medians[2] / medians[1]
    );
    println!(
        "settled / crate retour       {:.2}",
        medians[2] / medians[5]
    );
    println!(
        "transition - plain call      {:.2} ns",
        medians[3] - medians[0]
    );

    write.write_all(b".")?;
    holder.join().map_err(|_| "the holding thread panicked")?;
    Ok(())
}

fn patch(name: &str, funcs: &[(&str, Function)]) -> Result<Patch, Error> {
    let mut object = Object::vmlinux()?;
    for (old, new) in funcs {
        // SAFETY: pairs of functions of one type, of this program.
        object = object.func(unsafe { Func::new(old, CodeAddr::new(*new as usize as u64)) }?)?;
    }
    Patch::builder(name).object(Ok::<_, Error>(object)).build()
}

/// Puts the handler in the way of `call_handler` for good, as Linux does: its answer never depends
/// on the task.
fn handler_always(livepatch: &Livepatch) -> Result<(), Box<dyn std::error::Error>> {
    let host = livepatch.engine().host();
    let range = |function: Function| -> Result<TextRange, &str> {
        host.symbols()
            .function_at(CodeAddr::new(function as usize as u64))
            .ok_or("a function without a symbol")
    };
    let site = host
        .tracer()
        .site_of(range(call_handler)?)
        .map_err(|error| error.to_string())?;
    let ops = Ops::leak(klp_core::mem::try_box(Ops::new(range(new_call)?.start()))?);
    let routing = Routing {
        site,
        to: Route::Handler(ops.arg()),
    };
    // SAFETY: the handler leads on to `new_call`, which may be called in its place.
    unsafe { host.tracer().route(&[routing]) }.map_err(|error| error.to_string())?;
    Ok(())
}

/// The median time of one call of each function, in nanoseconds.
fn measure(functions: &[Function]) -> Vec<f64> {
    let mut times = vec![Vec::with_capacity(ROUNDS); functions.len()];
    for _ in 0..ROUNDS {
        for (function, times) in functions.iter().zip(&mut times) {
            let begin = Instant::now();
            // SAFETY: the functions take any number.
            let result = unsafe { call_loop(*function, CALLS) };
            times.push(begin.elapsed());
            assert_eq!(result.unsigned_abs(), CALLS, "a call went astray");
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[ROUNDS / 2].as_secs_f64() * 1e9 / f64::from(CALLS)
    };
    times.iter_mut().map(median).collect()
}
