//! JSON as the mesh treats it: checked whole, sliced, never decoded and encoded again.
//!
//! Belongs here: one pass over a text that checks RFC 8259's grammar and a bound on nesting; slices of
//! the elements of an array and the members of an object; strings with their escapes undone.
//! Stays out: what a message must contain (`gate`, `socketio`, `plain`, `product`).
//! Units: positions and lengths in bytes. Linear in the text, no recursion, no allocation for a check.
//! Invariants: what passes [`check`] is accepted by every JSON parser without a smaller nesting limit.
//! Values are not looked at, so `1e999`, `-0`, lone surrogates and repeated keys pass byte for byte.
//! Why not serde_json: it has no setting for depth (127 or unbounded) and refuses `1e999` and lone
//! surrogates, which stock clients may send to each other. Source: RFC 8259 §2–§7.
//!
//! The text is presumed to be UTF-8: transports check that (RFC 6455 §8.1) before anything comes here.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

#[cfg(test)]
mod tests;

/// The deepest nesting that any limit can allow: the walk keeps one bit per level on the stack.
pub const DEPTH_MAX: usize = 1024;

/// A text that is not the JSON it should be. Nothing of it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON: the byte at this position cannot stand there, or the text ends too early.
    #[error("not JSON at byte {at}")]
    Syntax {
        /// Position of the first byte that does not fit.
        at: usize,
    },
    /// JSON, as far as it was read, but nested too deep.
    #[error("nested deeper than {max} at byte {at}")]
    TooDeep {
        /// Position of the bracket that is one too many.
        at: usize,
        /// What is allowed.
        max: usize,
    },
    /// Some other value where an array must be.
    #[error("not an array")]
    NotAnArray,
    /// Some other value where an object must be.
    #[error("not an object")]
    NotAnObject,
}

/// Told what a [`walk`] passes. Raw text: strings and keys with their quotes, escapes untouched.
pub(crate) trait Sink {
    /// An object's key; its value follows.
    fn key(&mut self, raw: &[u8]);
    /// A string, number or literal.
    fn scalar(&mut self, raw: &[u8]);
    /// `{` or `[`.
    fn open(&mut self);
    /// `}` or `]`.
    fn close(&mut self);
}

/// Checks and tells nobody.
impl Sink for () {
    fn key(&mut self, _: &[u8]) {}
    fn scalar(&mut self, _: &[u8]) {}
    fn open(&mut self) {}
    fn close(&mut self) {}
}

/// Checks that `text` is one JSON value, with white space around it at most, nested at most
/// `depth_max` deep (`[]` is one deep).
///
/// # Errors
/// [`JsonError::Syntax`] or [`JsonError::TooDeep`].
pub fn check(text: &[u8], depth_max: usize) -> Result<(), JsonError> {
    check_with(text, depth_max, &mut ())
}

/// [`check`], telling `sink` what passes by.
pub(crate) fn check_with(text: &[u8], depth_max: usize, sink: &mut impl Sink) -> Result<(), JsonError> {
    let end = walk(text, skip_space(text, 0), depth_max, sink)?;
    let end = skip_space(text, end);
    if end == text.len() { Ok(()) } else { Err(JsonError::Syntax { at: end }) }
}

/// Which brackets are open: one bit per level, set for objects.
struct Nesting {
    objects: [u64; DEPTH_MAX / 64],
    depth: usize,
    max: usize,
}

impl Nesting {
    fn push(&mut self, object: bool, at: usize) -> Result<(), JsonError> {
        if self.depth >= self.max {
            return Err(JsonError::TooDeep { at, max: self.max });
        }
        let bit = 1 << (self.depth % 64);
        let word = &mut self.objects[self.depth / 64];
        if object {
            *word |= bit
        } else {
            *word &= !bit
        }
        self.depth += 1;
        Ok(())
    }

    /// Whether the innermost bracket is an object's; `None` outside of all.
    fn in_object(&self) -> Option<bool> {
        let top = self.depth.checked_sub(1)?;
        Some(self.objects[top / 64] >> (top % 64) & 1 == 1)
    }
}

/// Passes over the value that starts at `at` and returns where it ends.
fn walk(text: &[u8], mut at: usize, depth_max: usize, sink: &mut impl Sink) -> Result<usize, JsonError> {
    let mut open = Nesting { objects: [0; DEPTH_MAX / 64], depth: 0, max: depth_max.min(DEPTH_MAX) };
    loop {
        // Here a value must start.
        match text.get(at) {
            Some(&bracket @ (b'[' | b'{')) => {
                let object = bracket == b'{';
                open.push(object, at)?;
                sink.open();
                at = skip_space(text, at + 1);
                let empty = text.get(at) == Some(if object { &b'}' } else { &b']' });
                if !empty {
                    if object {
                        at = walk_key(text, at, sink)?;
                    }
                    continue;
                }
            }
            _ => {
                let end = scalar_end(text, at)?;
                sink.scalar(&text[at..end]);
                at = end;
            }
        }
        // Here a value has ended (or an empty bracket is about to close): close what closes.
        loop {
            let Some(object) = open.in_object() else { return Ok(at) };
            at = skip_space(text, at);
            match text.get(at) {
                Some(b',') => {
                    at = skip_space(text, at + 1);
                    if object {
                        at = walk_key(text, at, sink)?;
                    }
                    break;
                }
                Some(b'}') if object => {}
                Some(b']') if !object => {}
                _ => return Err(JsonError::Syntax { at }),
            }
            sink.close();
            open.depth -= 1;
            at += 1;
        }
    }
}

/// Passes over a key and its colon; returns where the value starts.
fn walk_key(text: &[u8], at: usize, sink: &mut impl Sink) -> Result<usize, JsonError> {
    let end = string_end(text, at)?;
    sink.key(&text[at..end]);
    let colon = skip_space(text, end);
    if text.get(colon) != Some(&b':') {
        return Err(JsonError::Syntax { at: colon });
    }
    Ok(skip_space(text, colon + 1))
}

fn skip_space(text: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = text.get(at) {
        at += 1;
    }
    at
}

fn scalar_end(text: &[u8], at: usize) -> Result<usize, JsonError> {
    match text.get(at) {
        Some(b'"') => string_end(text, at),
        Some(b'-' | b'0'..=b'9') => number_end(text, at),
        Some(b't') => literal_end(text, at, b"true"),
        Some(b'f') => literal_end(text, at, b"false"),
        Some(b'n') => literal_end(text, at, b"null"),
        _ => Err(JsonError::Syntax { at }),
    }
}

fn literal_end(text: &[u8], at: usize, literal: &[u8]) -> Result<usize, JsonError> {
    if text[at..].starts_with(literal) { Ok(at + literal.len()) } else { Err(JsonError::Syntax { at }) }
}

/// RFC 8259 §7.
fn string_end(text: &[u8], start: usize) -> Result<usize, JsonError> {
    if text.get(start) != Some(&b'"') {
        return Err(JsonError::Syntax { at: start });
    }
    let mut at = start + 1;
    loop {
        match text.get(at) {
            Some(b'"') => return Ok(at + 1),
            Some(b'\\') => match text.get(at + 1) {
                Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => at += 2,
                Some(b'u') => {
                    let digits = text.get(at + 2..at + 6).unwrap_or_default();
                    if digits.len() < 4 || !digits.iter().all(u8::is_ascii_hexdigit) {
                        return Err(JsonError::Syntax { at });
                    }
                    at += 6;
                }
                _ => return Err(JsonError::Syntax { at }),
            },
            Some(0x20..) => at += 1,
            Some(_) | None => return Err(JsonError::Syntax { at }),
        }
    }
}

/// RFC 8259 §6. What follows the number is not looked at: `01` ends after `0`.
fn number_end(text: &[u8], start: usize) -> Result<usize, JsonError> {
    let mut at = start;
    if text.get(at) == Some(&b'-') {
        at += 1;
    }
    at = if text.get(at) == Some(&b'0') { at + 1 } else { digits_end(text, at)? };
    if text.get(at) == Some(&b'.') {
        at = digits_end(text, at + 1)?;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        let sign = usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        at = digits_end(text, at + 1 + sign)?;
    }
    Ok(at)
}

/// One digit or more.
fn digits_end(text: &[u8], start: usize) -> Result<usize, JsonError> {
    let len = text[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    if len == 0 { Err(JsonError::Syntax { at: start }) } else { Ok(start + len) }
}

/// Where a list of elements or members has got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Before the bracket.
    Start,
    /// After an item.
    Next,
    /// After the closing bracket, or an error.
    Done,
}

/// Moves to the next item of a bracketed list; `None` at its end, which must be the text's end too.
fn next_item(
    text: &[u8],
    at: &mut usize,
    step: &mut Step,
    brackets: [u8; 2],
) -> Option<Result<(), JsonError>> {
    let [open, close] = brackets;
    let syntax = |at| Some(Err(JsonError::Syntax { at }));
    let first = *step == Step::Start;
    match std::mem::replace(step, Step::Done) {
        Step::Done => return None,
        Step::Start => {
            *at = skip_space(text, 0);
            match text.get(*at) {
                Some(&byte) if byte == open => *at = skip_space(text, *at + 1),
                _ if open == b'[' => return Some(Err(JsonError::NotAnArray)),
                _ => return Some(Err(JsonError::NotAnObject)),
            }
        }
        Step::Next => *at = skip_space(text, *at),
    }
    match text.get(*at) {
        Some(&byte) if byte == close => {
            let end = skip_space(text, *at + 1);
            return if end == text.len() { None } else { syntax(end) };
        }
        Some(b',') if !first => *at = skip_space(text, *at + 1),
        Some(_) if first => {}
        _ => return syntax(*at),
    }
    *step = Step::Next;
    Some(Ok(()))
}

/// The elements of a JSON array, each as its place in the text. Ends after an error.
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    text: &'a [u8],
    at: usize,
    step: Step,
    depth_max: usize,
}

/// The elements of the array `text`, checked as they are passed.
#[must_use]
pub fn elements(text: &[u8], depth_max: usize) -> Elements<'_> {
    Elements { text, at: 0, step: Step::Start, depth_max: depth_max.saturating_sub(1) }
}

impl Iterator for Elements<'_> {
    type Item = Result<Range<usize>, JsonError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Err(error) = next_item(self.text, &mut self.at, &mut self.step, *b"[]")? {
            return Some(Err(error));
        }
        let start = self.at;
        let end = walk(self.text, start, self.depth_max, &mut ());
        match end {
            Ok(end) => self.at = end,
            Err(_) => self.step = Step::Done,
        }
        Some(end.map(|end| start..end))
    }
}

/// A member of an object: where its key (with quotes) and its value lie in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberAt {
    /// The key, with its quotes.
    pub key: Range<usize>,
    /// The value.
    pub value: Range<usize>,
}

/// The members of a JSON object, in the order of the text, repeated keys included. Ends after an error.
#[derive(Clone, Debug)]
pub struct Members<'a> {
    text: &'a [u8],
    at: usize,
    step: Step,
    depth_max: usize,
}

/// The members of the object `text`, checked as they are passed.
#[must_use]
pub fn members(text: &[u8], depth_max: usize) -> Members<'_> {
    Members { text, at: 0, step: Step::Start, depth_max: depth_max.saturating_sub(1) }
}

impl Members<'_> {
    fn member(&mut self) -> Result<MemberAt, JsonError> {
        let key = self.at..string_end(self.text, self.at)?;
        let start = walk_key(self.text, self.at, &mut ())?;
        let end = walk(self.text, start, self.depth_max, &mut ())?;
        self.at = end;
        Ok(MemberAt { key, value: start..end })
    }
}

impl Iterator for Members<'_> {
    type Item = Result<MemberAt, JsonError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Err(error) = next_item(self.text, &mut self.at, &mut self.step, *b"{}")? {
            return Some(Err(error));
        }
        let member = self.member();
        if member.is_err() {
            self.step = Step::Done;
        }
        Some(member)
    }
}

/// Slices an array into its elements without copying them.
///
/// # Errors
/// [`JsonError`] when `text` is anything but one well-formed array within `depth_max`.
pub fn split_array(text: &Bytes, depth_max: usize) -> Result<Vec<Bytes>, JsonError> {
    elements(text, depth_max).map(|element| element.map(|at| text.slice(at))).collect()
}

/// The first element of an array that has been checked; `None` if it is empty.
#[must_use]
pub fn first_element(array: &[u8]) -> Option<&[u8]> {
    elements(array, DEPTH_MAX).next()?.ok().map(|at| &array[at])
}

/// The first element of an array that has been checked, and the text from the second element to the
/// closing bracket (empty if there is none). Reads no further than the first. `None` if it is empty.
#[must_use]
pub fn split_first(array: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = elements(array, DEPTH_MAX).next()?.ok()?;
    let inner = array[at.end..].trim_ascii_end().strip_suffix(b"]")?.trim_ascii();
    Some((&array[at], inner.strip_prefix(b",").unwrap_or(inner).trim_ascii_start()))
}

/// What stands between the quotes of a checked string, escapes undone. Bytes, not text: a lone
/// surrogate (`"\ud800"`) has no UTF-8 form and comes out as three bytes that no valid text contains.
/// `None` if `raw` is no string.
#[must_use]
pub fn unescape(raw: &[u8]) -> Option<Cow<'_, [u8]>> {
    struct StringBytes;
    impl<'de> serde::de::Visitor<'de> for StringBytes {
        type Value = Cow<'de, [u8]>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a string")
        }
        fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
            Ok(Cow::Borrowed(bytes))
        }
        fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
            Ok(Cow::Owned(bytes.to_vec()))
        }
    }
    use serde::Deserializer as _;
    if raw.first() != Some(&b'"') {
        return None;
    }
    serde_json::Deserializer::from_slice(raw).deserialize_bytes(StringBytes).ok()
}

/// [`unescape`] for strings that must be text; `None` also for lone surrogates.
#[must_use]
pub fn unescape_str(raw: &[u8]) -> Option<Cow<'_, str>> {
    match unescape(raw)? {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    }
}

/// Appends `text` as a JSON string.
pub fn push_string(out: &mut Vec<u8>, text: &str) {
    // A string always serialises and a `Vec` always takes it.
    serde_json::to_writer(out, text).expect("writing a string into memory");
}
