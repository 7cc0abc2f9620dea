//! A host whose memory is a map of bytes and whose symbols are a list.

use crate::memory::exempt;
use alloc::collections::BTreeMap;
use core::cell::{Cell, RefCell};
use core::ffi::{CStr, c_char, c_int, c_void};
use core::fmt;
use core::ops::ControlFlow;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::elf::Loaded;
use klp_core::error::Error;
use klp_core::event::Event;
use klp_core::port::{
    Access, Arch, CallC, Code, Entry, Fill, Frame, Image, ImageLayout, InTurn, Intruder, Moves,
    OutOfReach, Owner, Platform, Poke, PortError, PortErrorKind, Progress, RelocError, Relocation,
    Relocator, Routing, Stopper, Support, Symbol, SymbolResolver, TaskId, TaskName, TaskSet,
    TaskState, Text, ThreadLocal, Tracer, Unreliable, Unwinder, Verifier, Visitor,
};
use std::sync::Mutex;

/// The `e_machine` of the toy.
pub(crate) const MACHINE: u16 = 62;

/// Address, 8 bytes.
pub(crate) const ABS64: u32 = 1;
/// Distance, 4 bytes.
pub(crate) const PC32: u32 = 2;
/// A branch: distance, 4 bytes, veneer if too far.
pub(crate) const BRANCH32: u32 = 4;
/// Distance to a slot that holds the address, 4 bytes.
pub(crate) const SLOT32: u32 = 9;
/// Eight bytes: the distance from the table of contents of the image's own, `_TOC_`.
pub(crate) const TOC64: u32 = 10;
/// Eight bytes: the distance to the symbol from the field that its own symbol marks.
pub(crate) const SECOND64: u32 = 11;
/// Eight bytes: the distance from the table of contents of the patched object.
pub(crate) const SHARED64: u32 = 12;
/// Eight bytes: `st_other` of a symbol of the image, 256 for one of the system.
pub(crate) const WHOSE64: u32 = 13;

/// To a thread-local variable, 4 bytes if by a slot, otherwise 8.
pub(crate) const THREAD64: u32 = 20;
pub(crate) const THREAD_SLOT32: u32 = 21;
pub(crate) const INDEX32: u32 = 22;
pub(crate) const MODULE32: u32 = 23;
pub(crate) const OFFSET64: u32 = 24;

/// A symbol for [`Host`].
pub(crate) struct Known {
    pub(crate) object: &'static str,
    pub(crate) name: &'static str,
    pub(crate) addr: u64,
    pub(crate) len: u64,
}

/// The host; it may be one that calls no functions of patch objects.
#[derive(Default)]
pub(crate) struct Host<const CALLS: bool = true> {
    pub(crate) symbols: Vec<Known>,
    pub(crate) exported: Vec<(&'static str, u64)>,
    /// With their objects and names.
    pub(crate) thread_locals: Vec<(&'static str, &'static str, ThreadLocal)>,
    /// The build-id of `vmlinux`.
    pub(crate) build_id: Option<&'static [u8]>,
    pub(crate) verifier: Option<Box<dyn Verifier>>,
    pub(crate) log: Mutex<Vec<String>>,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    images: Vec<Image>,
    bytes: BTreeMap<u64, u8>,
    /// Calls of the text until one fails.
    fail_after: Option<u32>,
    fills: usize,
}

impl Host {
    /// A host with one function to patch, `victim` in `vmlinux`, 64 bytes.
    pub(crate) fn new() -> Self {
        let symbols = vec![Known {
            object: "vmlinux",
            name: "victim",
            addr: 0x40_0000,
            len: 0x40,
        }];
        Self {
            symbols,
            ..Self::default()
        }
    }

    pub(crate) fn with(mut self, object: &'static str, name: &'static str, addr: u64) -> Self {
        self.symbols.push(Known {
            object,
            name,
            addr,
            len: 0x10,
        });
        self
    }

    pub(crate) fn exporting(mut self, name: &'static str, addr: u64) -> Self {
        self.exported.push((name, addr));
        self
    }

    /// Lets the `n`-th call of the text fail from now on (0: the next one).
    pub(crate) fn fail_text_call(&self, n: u32) {
        self.memory.lock().expect("lock").fail_after = Some(n);
    }

    /// Everything in memory: what must not change.
    pub(crate) fn snapshot(&self) -> (Vec<Image>, BTreeMap<u64, u8>) {
        let memory = self.memory.lock().expect("lock");
        (memory.images.clone(), memory.bytes.clone())
    }

    pub(crate) fn images(&self) -> usize {
        self.memory.lock().expect("lock").images.len()
    }

    pub(crate) fn fills(&self) -> usize {
        self.memory.lock().expect("lock").fills
    }

    pub(crate) fn bytes<const N: usize>(&self, at: CodeAddr) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(at, &mut bytes).expect("mapped");
        bytes
    }
}

impl Memory {
    fn maybe_fail(&mut self) -> Result<(), ToyError> {
        match &mut self.fail_after {
            Some(0) => Err(ToyError),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn parts(image: &Image) -> [TextRange; 3] {
        [image.text, image.rodata, image.data]
    }
}

/// A call of a function in an image, instead of which the toy writes down where, and of what object
/// it was told.
pub(crate) type Call = (u64, Option<String>);

thread_local! {
    static CALLS: RefCell<Vec<Call>> = const { RefCell::new(Vec::new()) };
    static ANSWER: Cell<c_int> = const { Cell::new(0) };
}

/// The calls of this thread since the last time.
pub(crate) fn calls() -> Vec<Call> {
    CALLS.take()
}

/// What functions in images return from now on.
pub(crate) fn answer(answer: c_int) {
    ANSWER.set(answer);
}

unsafe fn call_int(function: CodeAddr, object: *mut c_void) -> c_int {
    // SAFETY: callbacks are given an object, which begins with its name.
    let name = unsafe { *object.cast::<*const c_char>() };
    let name = (!name.is_null()).then(|| {
        // SAFETY: a name is text, ended by a zero byte.
        unsafe { CStr::from_ptr(name) }
            .to_str()
            .expect("UTF-8")
            .to_owned()
    });
    CALLS.with_borrow_mut(|calls| calls.push((function.get(), name)));
    ANSWER.get()
}

unsafe fn call_void(function: CodeAddr, object: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { call_int(function, object) };
}

/// The only error of the toy.
#[derive(Debug)]
pub(crate) struct ToyError;

impl fmt::Display for ToyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("toy failure")
    }
}

impl PortError for ToyError {
    fn kind(&self) -> PortErrorKind {
        PortErrorKind::Failed
    }
}

// SAFETY: nothing executes here, so no core can see a mix; memory is handed out once.
unsafe impl<const CALLS: bool> Text for Host<CALLS> {
    type Error = ToyError;
    const CALL_C: Option<CallC> = if CALLS {
        Some(CallC {
            int: call_int,
            void: call_void,
        })
    } else {
        None
    };

    fn read(&self, at: CodeAddr, into: &mut [u8]) -> Result<(), ToyError> {
        let mut memory = self.memory.lock().expect("lock");
        memory.maybe_fail()?;
        for (offset, byte) in into.iter_mut().enumerate() {
            *byte = *memory
                .bytes
                .get(&(at.get() + offset as u64))
                .ok_or(ToyError)?;
        }
        Ok(())
    }

    unsafe fn poke(&self, _: &[Poke<'_>]) -> Result<(), ToyError> {
        Err(ToyError)
    }

    fn alloc(&self, near: TextRange, reach: u64, layout: ImageLayout) -> Result<Image, ToyError> {
        let mut memory = self.memory.lock().expect("lock");
        memory.maybe_fail()?;
        let mut next = memory
            .images
            .iter()
            .map(|image| image.data.end().get())
            .max()
            .unwrap_or(near.end().get().max(1));
        let mut part = |len: u64| {
            let start = next.next_multiple_of(4096);
            next = start.checked_add(len)?;
            TextRange::new(CodeAddr::new(start), len)
        };
        let mut image = || {
            Some(Image {
                text: part(layout.text)?,
                rodata: part(layout.rodata)?,
                data: part(layout.data)?,
            })
        };
        let image = image().ok_or(ToyError)?;
        if image.data.end().get() - near.start().get() > reach || layout.data > 1 << 16 {
            return Err(ToyError);
        }
        for range in Memory::parts(&image) {
            exempt(|| {
                memory
                    .bytes
                    .extend((range.start().get()..range.end().get()).map(|at| (at, 0)))
            });
        }
        exempt(|| memory.images.push(image));
        Ok(image)
    }

    unsafe fn free(&self, image: Image) {
        let mut memory = self.memory.lock().expect("lock");
        let index = memory
            .images
            .iter()
            .position(|other| *other == image)
            .expect("freed what was not allocated");
        memory.images.remove(index);
        for range in Memory::parts(&image) {
            exempt(|| {
                memory
                    .bytes
                    .retain(|&at, _| !range.contains(CodeAddr::new(at)))
            });
        }
    }

    unsafe fn fill(&self, batch: &[Fill<'_>]) -> Result<(), ToyError> {
        let mut memory = self.memory.lock().expect("lock");
        memory.maybe_fail()?;
        memory.fills += 1;
        for fill in batch {
            for (at, byte) in (fill.at.get()..).zip(fill.bytes) {
                *memory.bytes.get_mut(&at).expect("fill outside of images") = *byte;
            }
        }
        Ok(())
    }
}

// SAFETY: nothing is executed.
unsafe impl<const CALLS: bool> SymbolResolver for Host<CALLS> {
    type Error = ToyError;

    fn build_id(&self, object: &str, is: &mut dyn FnMut(&[u8])) -> Result<(), ToyError> {
        self.build_id.filter(|_| object == "vmlinux").map(is);
        Ok(())
    }

    fn is_loaded(&self, object: &str) -> bool {
        self.symbols.iter().any(|known| known.object == object)
    }

    fn symbols(
        &self,
        object: &str,
        name: &str,
        found: &mut dyn FnMut(Symbol),
    ) -> Result<(), ToyError> {
        for known in self
            .symbols
            .iter()
            .filter(|known| known.object == object && known.name == name)
        {
            found(Symbol {
                addr: CodeAddr::new(known.addr),
                len: known.len,
            });
        }
        Ok(())
    }

    fn thread_locals(
        &self,
        object: &str,
        name: &str,
        found: &mut dyn FnMut(ThreadLocal),
    ) -> Result<(), ToyError> {
        let all = self.thread_locals.iter();
        let its = all.filter(|known| (known.0, known.1) == (object, name));
        its.for_each(|known| found(known.2));
        Ok(())
    }

    fn exported(&self, name: &str) -> Result<Option<CodeAddr>, ToyError> {
        let mut known = self.exported.iter();
        let found = known.find(|(known, _)| *known == name);
        Ok(found.map(|(_, addr)| CodeAddr::new(*addr)))
    }

    fn function_at(&self, _: CodeAddr) -> Option<TextRange> {
        None
    }
}

/// Relocations of the toy machine.
pub(crate) struct ToyRelocator;

impl ToyRelocator {
    fn len(kind: u32) -> Result<usize, RelocError> {
        match kind {
            ABS64 | TOC64 | SECOND64 | SHARED64 | WHOSE64 | THREAD64 | OFFSET64 => Ok(8),
            PC32 | BRANCH32 | SLOT32 | THREAD_SLOT32 | INDEX32 | MODULE32 => Ok(4),
            _ => Err(RelocError::Unsupported { kind }),
        }
    }
}

// SAFETY: nothing is executed.
unsafe impl Relocator for ToyRelocator {
    const MACHINE: u16 = MACHINE;

    fn support(kind: u32) -> Option<Support> {
        match kind {
            ABS64 | PC32 | TOC64 | SECOND64 | SHARED64 | WHOSE64 => Some(Support::None),
            BRANCH32 => Some(Support::Veneer),
            SLOT32 => Some(Support::AddressSlot),
            THREAD64 => Some(Support::ThreadLocal(Access::ThreadOffset)),
            THREAD_SLOT32 => Some(Support::ThreadLocal(Access::ThreadOffsetSlot)),
            INDEX32 => Some(Support::ThreadLocal(Access::Index)),
            MODULE32 => Some(Support::ThreadLocal(Access::ModuleIndex)),
            OFFSET64 => Some(Support::ThreadLocal(Access::Offset)),
            _ => None,
        }
    }

    const OWN_TOC: Option<&'static str> = Some("_TOC_");

    const SHARED_TOC: Option<&'static str> = Some(".TOC.");

    fn uses_toc(kind: u32) -> bool {
        kind == SHARED64
    }

    fn completes(kind: u32) -> bool {
        kind == SECOND64
    }

    fn apply(reloc: &Relocation, bytes: &mut [u8]) -> Result<(), RelocError> {
        let &Relocation {
            kind,
            place,
            symbol,
            addend,
            around,
            ..
        } = reloc;
        let field = bytes
            .get_mut(..Self::len(kind)?)
            .ok_or(RelocError::BadPlace { kind })?;
        if field.iter().any(|&byte| byte != 0) {
            return Err(RelocError::BadPlace { kind });
        }
        let absolute = symbol.wrapping_add_signed(addend);
        let base = match kind {
            ABS64 | THREAD64 | OFFSET64 => Some(CodeAddr::new(0)),
            TOC64 | SHARED64 => Some(around.toc.ok_or(RelocError::BadPlace { kind })?),
            SECOND64 => Some(around.pair.ok_or(RelocError::BadPlace { kind })?),
            _ => None,
        };
        if kind == WHOSE64 {
            let whose: u64 = match around.owner {
                Owner::Image { other } => other.into(),
                Owner::System => 256,
            };
            field.copy_from_slice(&whose.to_le_bytes());
            return Ok(());
        }
        if let Some(base) = base {
            field.copy_from_slice(&absolute.wrapping_sub(base.get()).to_le_bytes());
            return Ok(());
        }
        let value = absolute.wrapping_sub(place.get()) as i64;
        let narrow = i32::try_from(value).map_err(|_| RelocError::OutOfRange { kind, value })?;
        field.copy_from_slice(&narrow.to_le_bytes());
        Ok(())
    }

    fn clear(kind: u32, bytes: &mut [u8]) -> Result<(), RelocError> {
        bytes
            .get_mut(..Self::len(kind)?)
            .ok_or(RelocError::BadPlace { kind })?
            .fill(0);
        Ok(())
    }
}

/// Instructions of the toy machine: only the veneer matters here.
pub(crate) struct ToyArch;

// SAFETY: nothing is executed.
unsafe impl Arch for ToyArch {
    const MAX_ENTRY: usize = 8;
    const SLOT: u64 = 16;
    const REACH: u64 = 1 << 31;

    fn entry(_: CodeAddr, _: &[u8]) -> Option<Entry> {
        None
    }

    fn intruder(_: CodeAddr, _: &[u8]) -> Option<Intruder> {
        None
    }

    fn jump(from: CodeAddr, to: CodeAddr, _: u8) -> Result<Code, OutOfReach> {
        Err(OutOfReach { from, to })
    }

    fn thunk(at: CodeAddr, _: u64, stub: CodeAddr) -> Code {
        Self::veneer(at, stub)
    }

    fn veneer(_: CodeAddr, to: CodeAddr) -> Code {
        let mut code = Code::from_slice(b"go").expect("fits");
        code.extend_from_slice(&to.get().to_le_bytes())
            .expect("fits");
        code
    }
}

// SAFETY: one host that executes nothing.
unsafe impl<const CALLS: bool> Platform for Host<CALLS> {
    type Lock = spin::Mutex<()>;
    type Tracer = Self;
    type Unwinder = Self;
    type Tasks = Self;
    type Symbols = Self;
    type Text = Self;
    type Arch = ToyArch;
    type Relocator = ToyRelocator;

    fn tracer(&self) -> &Self {
        self
    }
    fn unwinder(&self) -> &Self {
        self
    }
    fn tasks(&self) -> &Self {
        self
    }
    fn symbols(&self) -> &Self {
        self
    }
    fn text(&self) -> &Self {
        self
    }
    fn verifier(&self) -> Option<&dyn Verifier> {
        self.verifier.as_deref()
    }
    fn event(&self, event: &Event<'_>) {
        let mut log = self.log.lock().expect("nobody panicked");
        log.push(event.to_string());
    }
}

// SAFETY: nothing is routed, and nothing runs.
unsafe impl<const CALLS: bool> Tracer for Host<CALLS> {
    type Site = u64;
    type Error = ToyError;

    fn site_of(&self, _: TextRange) -> Result<u64, ToyError> {
        Err(ToyError)
    }
    fn original(&self, site: u64) -> CodeAddr {
        CodeAddr::new(site)
    }
    unsafe fn route(&self, batch: &[Routing<u64>]) -> Result<(), ToyError> {
        if batch.is_empty() {
            Ok(())
        } else {
            Err(ToyError)
        }
    }
    unsafe fn forget(&self, _: Self::Site) {}

    fn synchronize(&self) {}
}

// SAFETY: there are no tasks.
unsafe impl<const CALLS: bool> Unwinder for Host<CALLS> {
    type Context = ();

    fn walk(&self, (): &(), _: &mut dyn FnMut(Frame) -> ControlFlow<()>) -> Result<(), Unreliable> {
        Ok(())
    }
}

// SAFETY: there are no tasks.
unsafe impl<const CALLS: bool> TaskSet for Host<CALLS> {
    type Error = ToyError;

    fn current_state(&self) -> TaskState {
        TaskState::Idle
    }
    fn init(&self, _: TaskState, _: InTurn) -> Result<(), ToyError> {
        Ok(())
    }
    fn start(&self, _: TaskState, _: InTurn) -> Result<(), ToyError> {
        Ok(())
    }
    fn pending(&self, _: &Moves, _: &mut dyn FnMut(TaskId)) -> Result<(), ToyError> {
        Ok(())
    }
    fn close(&self, _: &Moves) -> Progress {
        Progress::Done
    }
    unsafe fn force(&self, _: &Moves) {}
    fn kick(&self, _: TaskId) {}
    fn finish(&self, _: InTurn) {}
    fn exists(&self, _: TaskId) -> bool {
        false
    }
    fn name(&self, _: TaskId) -> TaskName {
        TaskName::new()
    }
}

// SAFETY: there are no tasks.
unsafe impl<const CALLS: bool> Stopper for Host<CALLS> {
    type Context = ();
    unsafe fn with_stopped(&self, _: &Moves, _: &[TaskId], _: &dyn Visitor<()>) {}
}

/// Loads a patch object for a host that executes none of it.
///
/// # Errors
///
/// As for [`klp_core::elf::load`].
pub(crate) fn load<const CALLS: bool>(
    host: &Host<CALLS>,
    file: &[u8],
    name: &str,
) -> Result<Loaded, Error> {
    // SAFETY: nothing of the file is executed; what is called as a callback are functions of the
    // tests, whatever the file says.
    unsafe { klp_core::elf::load(host, klp_core::elf::admit(host, file, name)?, name) }
}
