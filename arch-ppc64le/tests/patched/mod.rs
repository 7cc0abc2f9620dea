//! Patch objects as GCC compiles them, in a running process: registers 2 and what depends on them
//! are right whoever calls, whatever way a call takes.
//!
//! The target is a library compiled with `-mprofile-kernel`. Its functions are called from within
//! it, which leaves register 2 alone, and through pointers from here, where register 2 is another.
//! The patch's functions call back into the library, into another one and each other.

use core::ffi::c_void;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::{mem, ptr};
use klp_arch_ppc64le::Ppc64Le;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::ops::Ops;
use klp_core::port::{
    EntryHost, EntryTracer, Fill, Image, ImageLayout, Platform, Poke, PortError, PortErrorKind,
    Route, Routing, Symbol, SymbolResolver, TaskState, Text, Tracer,
};
use klp_core::sim::SimOs;
use klp_core::{elf, relocs};
use object::{Object, ObjectSymbol};
use std::collections::HashMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;

const HELPER: &str = "
    static long offset = 1000;
    long helper(long x) { return 2 * x + *(volatile long *)&offset; }
";

/// `_mcount` goes back to where its caller's `bl` ends, and its caller to where that was called.
const TARGET: &str = r#"
    #include <stdarg.h>
    __asm__(".type _mcount, @function; .globl _mcount; .hidden _mcount;"
            "_mcount: mflr 12; mtctr 12; mtlr 0; bctr");
    #define ALONE __attribute__((noipa))
    long helper(long);
    static long local_state = 100;
    void set_local_state(long x) { local_state = x; }
    ALONE static long secret(long x) { return x + local_state; }

    ALONE static long leaf(long x) { return x + 1; }
    ALONE static long many(long a, long b, long c, long d, long e, long f,
                           long g, long h, long i, long j, long k, long l)
    { return a + b + c + d + e + f + g + h + i + j + k + l + local_state; }
    ALONE static long variadic(int count, ...)
    {
        va_list list;
        long sum = local_state;
        va_start(list, count);
        while (count-- > 0)
            sum += va_arg(list, long);
        va_end(list);
        return sum;
    }
    ALONE static long deep(long x) { return x ? deep(x - 1) + local_state : 0; }

    /* Each looks at what it finds by register 2 when the call has come back. */
    long call_leaf(long x) { long sum = leaf(x); return sum + secret(0) + helper(0); }
    long call_many(long x)
    {
        long sum = many(x, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
        return sum + secret(0) + helper(0);
    }
    long call_variadic(long x)
    {
        long sum = variadic(10, x, 2L, 3L, 4L, 5L, 6L, 7L, 8L, 9L, 10L);
        return sum + secret(0) + helper(0);
    }
    long call_deep(long x) { long sum = deep(x); return sum + secret(0) + helper(0); }

    void *const functions[] = { leaf, many, variadic, deep };
"#;

const PATCH: &str = r#"
    #include <klp/patch.h>
    #include <stdarg.h>
    KLP_PATCH("fix");
    extern long local_state KLP_SYMBOL(libtarget, local_state, 0);
    extern long secret(long) KLP_SYMBOL(libtarget, secret, 0);
    extern long deep(long) KLP_SYMBOL(libtarget, deep, 0);
    long helper(long);
    static long (*volatile through_pointer)(long) = helper;
    static volatile long own_state = 10000;
    __attribute__((noipa)) static long own(long x) { return x + own_state; }

    static long new_leaf(long x) { return own(x) + helper(x) + secret(x) + local_state; }
    static long new_many(long a, long b, long c, long d, long e, long f,
                         long g, long h, long i, long j, long k, long l)
    {
        long sum = helper(a) + secret(l);
        return sum - (a + b + c + d + e + f + g + h + i + j + k + l) + own(local_state);
    }
    static long new_variadic(int count, ...)
    {
        va_list list;
        long sum = own(local_state) + through_pointer(1);
        va_start(list, count);
        while (count-- > 0)
            sum -= helper(va_arg(list, long));
        va_end(list);
        return sum;
    }
    /* Through the entry of the old function each time. */
    static long new_deep(long x) { return x ? deep(x - 1) + own(0) + helper(0) : secret(0); }

    KLP_REPLACE(target, "libtarget", KLP_FUNC(leaf, new_leaf), KLP_FUNC(many, new_many),
                KLP_FUNC(variadic, new_variadic), KLP_FUNC(deep, new_deep));
"#;

const NAMES: [&str; 4] = ["leaf", "many", "variadic", "deep"];

/// Compiles `source` to a file called `name`.
fn compile(folder: &Path, name: &str, source: &str, flags: &[&str]) -> PathBuf {
    let (from, to) = (folder.join(name).with_extension("c"), folder.join(name));
    std::fs::write(&from, source).expect("a file");
    let cross = "powerpc64le-linux-gnu-gcc";
    let found = Command::new(cross).arg("--version").output().is_ok();
    let mut command = Command::new(if found { cross } else { "gcc" });
    command.args(["-O2", "-fPIC", "-I"]);
    command.arg(klp_build::include_dir()).args(flags);
    command.arg("-o").args([&to, &from]);
    let output = command.output().expect("a C compiler");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    to
}

fn open(path: &Path) -> *mut c_void {
    let path = CString::new(path.to_str().expect("UTF-8")).expect("no zero");
    // SAFETY: a path; the library's constructors do nothing of note.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!library.is_null(), "dlopen");
    library
}

/// The address of an exported symbol.
fn exported(name: &str) -> Option<u64> {
    let name = CString::new(name).expect("no zero");
    // SAFETY: the name ends with a zero byte.
    let at = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!at.is_null()).then_some(at as u64)
}

/// Memory that everything is allowed in.
struct Memory;

#[derive(Debug)]
struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no memory there")
    }
}

impl PortError for Failed {
    fn kind(&self) -> PortErrorKind {
        PortErrorKind::Failed
    }
}

/// No page is larger.
const PAGE: u64 = 1 << 16;

/// Writes code, and makes it fit to be executed (Power ISA, book II, 1.8).
fn write(at: u64, bytes: &[u8]) {
    for (index, word) in bytes.chunks(4).enumerate() {
        let place = at + 4 * index as u64;
        // SAFETY: the callers' memory, which nobody else uses meanwhile.
        unsafe {
            match word.try_into() {
                Ok(word) if place % 4 == 0 => (place as *mut u32).write(u32::from_le_bytes(word)),
                _ => ptr::copy_nonoverlapping(word.as_ptr(), place as *mut u8, word.len()),
            }
            core::arch::asm!(
                "dcbst 0, {0}", "sync", "icbi 0, {0}", "sync", "isync",
                in(reg) place,
                options(nostack, preserves_flags),
            );
        }
    }
}

const ALL: i32 = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;

// SAFETY: one thread uses it, and is not within what it changes.
unsafe impl Text for Memory {
    type Error = Failed;

    fn read(&self, at: CodeAddr, into: &mut [u8]) -> Result<(), Failed> {
        // SAFETY: code of a library, or memory from `alloc`.
        unsafe { ptr::copy_nonoverlapping(at.get() as *const u8, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    unsafe fn poke(&self, batch: &[Poke<'_>]) -> Result<(), Failed> {
        for poke in batch {
            let page = poke.at.get() & !(PAGE - 1);
            // SAFETY: a page of a library's code.
            let changed = unsafe { libc::mprotect(page as *mut c_void, PAGE as usize, ALL) };
            assert_eq!(changed, 0, "mprotect");
            write(poke.at.get(), poke.new);
        }
        Ok(())
    }

    fn alloc(&self, near: TextRange, reach: u64, size: ImageLayout) -> Result<Image, Failed> {
        let sizes = [size.text, size.rodata, size.data].map(|len| len.next_multiple_of(PAGE));
        let len: u64 = sizes.iter().sum();
        for step in 1.. {
            let at = (near.end().get() + step * (PAGE << 4)) & !(PAGE - 1);
            if at + len - near.start().get() > reach {
                break;
            }
            // SAFETY: a new mapping, over no other.
            let found = unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
                libc::mmap(at as *mut c_void, len as usize, ALL, flags, -1, 0)
            };
            if found as u64 == at {
                let part = |skip: usize, len| {
                    let start = at + sizes[..skip].iter().sum::<u64>();
                    TextRange::new(CodeAddr::new(start), len).expect("a range")
                };
                return Ok(Image {
                    text: part(0, size.text),
                    rodata: part(1, size.rodata),
                    data: part(2, size.data),
                });
            }
        }
        Err(Failed)
    }

    unsafe fn free(&self, _: Image) {}

    unsafe fn fill(&self, batch: &[Fill<'_>]) -> Result<(), Failed> {
        batch
            .iter()
            .for_each(|fill| write(fill.at.get(), fill.bytes));
        Ok(())
    }
}

/// The symbols of the target.
struct Symbols(HashMap<String, Symbol>);

// SAFETY: the symbol table of the file that was loaded.
unsafe impl SymbolResolver for Symbols {
    type Error = Failed;

    fn is_loaded(&self, object: &str) -> bool {
        object == "libtarget"
    }

    fn symbols(
        &self,
        object: &str,
        name: &str,
        found: &mut dyn FnMut(Symbol),
    ) -> Result<(), Failed> {
        assert_eq!(object, "libtarget");
        self.0.get(name).copied().into_iter().for_each(found);
        Ok(())
    }

    fn exported(&self, name: &str) -> Result<Option<CodeAddr>, Failed> {
        Ok(exported(name).map(CodeAddr::new))
    }

    fn function_at(&self, _: CodeAddr) -> Option<TextRange> {
        None
    }
}

/// This process, as far as loading a patch goes; the rest is the simulated one's, and not used.
struct Process {
    symbols: Symbols,
    rest: SimOs,
}

// SAFETY: no task runs through an engine here.
unsafe impl Platform for Process {
    type Lock = <SimOs as Platform>::Lock;
    type Tracer = <SimOs as Platform>::Tracer;
    type Unwinder = <SimOs as Platform>::Unwinder;
    type Tasks = <SimOs as Platform>::Tasks;
    type Symbols = Symbols;
    type Text = Memory;
    type Arch = Ppc64Le;
    type Relocator = Ppc64Le;

    fn tracer(&self) -> &Self::Tracer {
        self.rest.tracer()
    }
    fn unwinder(&self) -> &Self::Unwinder {
        self.rest.unwinder()
    }
    fn tasks(&self) -> &Self::Tasks {
        self.rest.tasks()
    }
    fn symbols(&self) -> &Symbols {
        &self.symbols
    }
    fn text(&self) -> &Memory {
        &Memory
    }
}

/// Where the handler sends calls: 0 to the original.
static NEXT: AtomicU64 = AtomicU64::new(0);

extern "C" fn handler(arg: u64) -> u64 {
    match NEXT.load(Relaxed) {
        // SAFETY: the number of an `Ops`; there is no transition.
        0 => unsafe { klp_core::ops::handler(arg, || TaskState::Idle) }.get(),
        next => next,
    }
}

klp_arch_ppc64le::entry_stub!(fn klp_test_patch_stub, handler);

struct Entries;

// SAFETY: the entries of functions that were compiled with `-mprofile-kernel`.
unsafe impl EntryHost for Entries {
    type Lock = <SimOs as Platform>::Lock;

    fn recorded_site(&self, func: TextRange) -> Option<CodeAddr> {
        Some(func.start())
    }

    fn is_notrace(&self, _: TextRange) -> bool {
        false
    }

    fn stub(&self) -> CodeAddr {
        CodeAddr::new(klp_test_patch_stub as *const () as u64)
    }

    fn synchronize(&self) {}
}

/// What the functions give, called from within the library and through pointers from here.
fn results() -> [[i64; 4]; 2] {
    type Many = extern "C" fn(i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> i64;
    type Variadic = unsafe extern "C" fn(i32, ...) -> i64;
    type One = extern "C" fn(i64) -> i64;
    let local = ["call_leaf", "call_many", "call_variadic", "call_deep"].map(|name| {
        let function = exported(name).expect("the library exports it");
        // SAFETY: its type in the source above.
        let function: One = unsafe { mem::transmute(function) };
        function(7)
    });
    let functions = exported("functions").expect("the library exports it") as *const [u64; 4];
    // SAFETY: the types in the source above.
    let pointers = unsafe {
        let [leaf, many, variadic, deep] = *functions;
        let (leaf, deep): (One, One) = (mem::transmute(leaf), mem::transmute(deep));
        let many: Many = mem::transmute(many);
        let variadic: Variadic = mem::transmute(variadic);
        [
            leaf(7),
            many(7, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12),
            variadic(
                10, 7_i64, 2_i64, 3_i64, 4_i64, 5_i64, 6_i64, 7_i64, 8_i64, 9_i64, 10_i64,
            ),
            deep(7),
        ]
    };
    [local, pointers]
}

/// The same, worked out by hand.
fn expected(patched: bool) -> [[i64; 4]; 2] {
    let (state, own, offset) = (100, 10_000, 1000);
    let helper = |x: i64| 2 * x + offset;
    let sum = 7 + (2..=12).sum::<i64>();
    let listed = 7 + (2..=10).sum::<i64>();
    let results = if patched {
        [
            7 + own + helper(7) + 7 + state + state,
            helper(7) + 12 + state - sum + state + own,
            state + own + helper(1) - 2 * listed - 10 * offset,
            7 * (own + helper(0)) + state,
        ]
    } else {
        [8, sum + state, listed + state, 7 * state]
    };
    [results.map(|result| result + state + helper(0)), results]
}

/// Compiles all of it for `cpu`, patches the library by every kind of route, and takes all back.
pub(crate) fn patched_and_back(cpu: &str) {
    let cpu = format!("-mcpu={cpu}");
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    open(&compile(folder, "libhelper.so", HELPER, &["-shared", &cpu]));
    let profiled = ["-shared", "-pg", "-mprofile-kernel", &cpu];
    let target = compile(folder, "libtarget.so", TARGET, &profiled);
    let library = open(&target);
    let object = compile(
        folder,
        "patch.o",
        PATCH,
        &["-c", "-ffunction-sections", &cpu],
    );
    let patch = klp_build::convert(&std::fs::read(object).expect("a file")).expect("converts");

    let file = std::fs::read(target).expect("a file");
    let file = object::File::parse(&*file).expect("an ELF file");
    let in_file = file
        .symbols()
        .find(|symbol| symbol.name() == Ok("call_leaf"));
    let in_file = in_file.expect("the library has it").address();
    let base = exported("call_leaf").expect("the library exports it") - in_file;
    let symbols = file.symbols().map(|symbol| {
        let (addr, len) = (CodeAddr::new(base + symbol.address()), symbol.size());
        (
            symbol.name().unwrap_or_default().to_string(),
            Symbol { addr, len },
        )
    });
    let process = Process {
        symbols: Symbols(symbols.collect()),
        rest: SimOs::new(),
    };
    assert!(!library.is_null());
    assert_eq!(results(), expected(false), "before");

    let patch = elf::admit(&process, &patch, "fix").expect("nobody verifies");
    // SAFETY: the source above; the functions replaced have the same types.
    let loaded = unsafe { elf::load(&process, patch, "fix") }.expect("loads");
    let [object] = loaded.patch.objects() else {
        panic!("one object")
    };
    // SAFETY: nobody executes the patch's code yet.
    unsafe { relocs::apply(&process, "fix", object) }.expect("applies");

    let tracer = EntryTracer::<Ppc64Le, Memory, Entries>::new(Memory, Entries);
    let sites = NAMES.map(|name| {
        let symbol = process.symbols.0[name];
        let range = TextRange::new(symbol.addr, symbol.len).expect("a range");
        tracer.site_of(range).expect("an entry of -mprofile-kernel")
    });
    let route = |to: &dyn Fn(usize) -> Route| {
        for (index, &site) in sites.iter().enumerate() {
            let to = to(index);
            // SAFETY: to functions of the same types.
            unsafe { tracer.route(&[Routing { site, to }]) }.expect("routes");
        }
    };
    let ops = sites.map(|site| Ops::leak(Box::new([Ops::new(tracer.original(site))])));
    let new = |index: usize| {
        let functions = object.funcs().iter();
        let mut found = functions.filter(|func| **func.old_name() == *NAMES[index]);
        found.next().expect("replaced").new_addr()
    };

    // In a transition, for tasks that have not moved.
    route(&|index| Route::Handler(ops[index].arg()));
    assert_eq!(results(), expected(false), "by the handler to the original");
    // And for others: one function after the other, as the handler here knows no task.
    for index in 0..4 {
        route(&|_| Route::Original);
        let to = Route::Handler(ops[index].arg());
        let site = sites[index];
        // SAFETY: as above.
        unsafe { tracer.route(&[Routing { site, to }]) }.expect("routes");
        NEXT.store(new(index).get(), Relaxed);
        let [local, pointers] = results();
        let [expected_local, expected_pointers] = expected(true);
        let found = (local[index], pointers[index]);
        assert_eq!(found, (expected_local[index], expected_pointers[index]));
        NEXT.store(0, Relaxed);
    }
    // Settled.
    route(&|index| Route::Direct(new(index)));
    for _ in 0..100 {
        assert_eq!(results(), expected(true), "straight to the new functions");
    }
    route(&|_| Route::Original);
    assert_eq!(results(), expected(false), "afterwards");
}
