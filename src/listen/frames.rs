//! Reads along in what an HTTP/2 client sends, far enough to know whether a header block is unfinished.
//!
//! hyper has no timer for half a preface, half a frame head or a HEADERS frame whose CONTINUATION never comes (RFC 9113
//! §3.4, §4.1, §6.10); this says when one of them is open. Lengths and types only, nothing is kept or judged.

const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;

/// Where in the client's frames the bytes read so far end.
#[derive(Debug)]
pub(super) struct Frames {
    preface_left: usize,
    head: [u8; FRAME_HEAD],
    /// Bytes of the frame head read.
    have: usize,
    /// Bytes of the frame's payload not read.
    left: usize,
    /// In a header block: from the head of HEADERS to the end of the frame with END_HEADERS.
    block: bool,
    mark: u32,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self { preface_left: PREFACE, head: [0; FRAME_HEAD], have: 0, left: 0, block: false, mark: 0 }
    }

    /// The client preface is complete.
    pub(super) fn preface(&self) -> bool {
        self.preface_left == 0
    }

    /// A frame head or a header block has begun and is not complete.
    pub(super) fn head_open(&self) -> bool {
        self.block || self.have > 0
    }

    /// Changes whenever a frame head or a header block is complete.
    pub(super) fn mark(&self) -> u32 {
        self.mark
    }

    /// Takes what was read next.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        self.preface_left -= skip(&mut bytes, self.preface_left);
        while !bytes.is_empty() {
            if self.left > 0 {
                self.left -= skip(&mut bytes, self.left);
                if self.left == 0 {
                    self.frame_over();
                }
                continue;
            }
            for (to, from) in self.head.iter_mut().skip(self.have).zip(bytes) {
                *to = *from;
            }
            self.have += skip(&mut bytes, FRAME_HEAD - self.have);
            if self.have == FRAME_HEAD {
                self.have = 0;
                self.frame_begins();
            }
        }
    }

    fn frame_begins(&mut self) {
        let [a, b, c, kind, ..] = self.head;
        self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if kind == HEADERS || kind == CONTINUATION {
            self.block = true;
        } else if !self.block {
            self.mark = self.mark.wrapping_add(1);
        }
        if self.left == 0 {
            self.frame_over();
        }
    }

    fn frame_over(&mut self) {
        let [_, _, _, kind, flags, ..] = self.head;
        if (kind == HEADERS || kind == CONTINUATION) && flags & END_HEADERS != 0 {
            self.block = false;
            self.mark = self.mark.wrapping_add(1);
        }
    }
}

/// Takes up to `most` bytes off the front; how many it took.
fn skip(bytes: &mut &[u8], most: usize) -> usize {
    let (taken, rest) = bytes.split_at_checked(most).unwrap_or((bytes, &[]));
    *bytes = rest;
    taken.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let mut bytes = vec![0, (payload >> 8) as u8, payload as u8, kind, flags, 0, 0, 0, 1];
        bytes.resize(FRAME_HEAD + payload, b'x');
        bytes
    }

    fn fed(parts: &[&[u8]]) -> Frames {
        let mut frames = Frames::new();
        frames.feed(&[b'P'; PREFACE]);
        for part in parts {
            // any cut of the bytes gives the same answer
            for byte in part.chunks(7) {
                frames.feed(byte);
            }
        }
        frames
    }

    #[test]
    fn a_header_block_is_open_until_end_headers() {
        let headers = frame(HEADERS, 0, 300);
        let more = frame(CONTINUATION, 0, 20);
        let last = frame(CONTINUATION, END_HEADERS, 0);
        assert!(fed(&[&headers]).head_open());
        assert!(fed(&[&headers, &more]).head_open());
        assert!(!fed(&[&headers, &more, &last]).head_open());
        assert!(!fed(&[&frame(HEADERS, END_HEADERS, 300)]).head_open());
        assert!(fed(&[&frame(HEADERS, END_HEADERS, 300)[..308]]).head_open());
    }

    #[test]
    fn half_a_frame_head_is_open_and_a_slow_body_is_not() {
        assert!(fed(&[&frame(0, 0, 10)[..4]]).head_open());
        assert!(!fed(&[&frame(0, 0, 10)[..12]]).head_open());
        assert!(!fed(&[]).head_open());
    }

    #[test]
    fn trickled_continuations_never_move_the_mark() {
        let headers = frame(HEADERS, 0, 3);
        let more = frame(CONTINUATION, 0, 3);
        assert_eq!(fed(&[&headers]).mark(), fed(&[&headers, &more, &more]).mark());
        assert_ne!(fed(&[&headers]).mark(), fed(&[&frame(HEADERS, END_HEADERS, 3)]).mark());
    }

    #[test]
    fn the_preface_is_no_frame() {
        let mut frames = Frames::new();
        frames.feed(b"PRI * HT");
        assert!(!frames.preface() && !frames.head_open());
        frames.feed(b"TP/2.0\r\n\r\nSM\r\n\r\n");
        assert!(frames.preface() && !frames.head_open());
    }
}
