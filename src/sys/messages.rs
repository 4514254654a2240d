//! Messages between two processes that carry descriptors with them.
//!
//! Source: unix(7), `SOCK_SEQPACKET` and `SCM_RIGHTS`.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg,
        socketpair,
    },
};

/// Most descriptors that one message carries.
const DESCRIPTORS: usize = 8;

/// Two ends of a socket that keeps the bounds of messages.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// A message that has come.
#[derive(Debug)]
pub struct Message {
    /// Number of bytes in the caller's buffer.
    pub len: usize,
    /// Descriptors, closed on exec.
    pub descriptors: Vec<OwnedFd>,
    /// The message was longer than the buffer, or carried more than eight descriptors.
    pub is_cut: bool,
}

/// Sends `bytes` and `descriptors`, without waiting for room.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?;
    Ok(())
}

/// Takes the next message, if one has come. An end of the socket is a message of no bytes and no descriptors. Errors:
/// [`io::ErrorKind::WouldBlock`] when none has come.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Message> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let room = buffer.len();
    let received = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Err(Errno::INTR) => {}
            received => break received?,
        }
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    let is_cut = received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok(Message { len: received.bytes.min(room), descriptors, is_cut })
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _};

    use super::*;
    use crate::sys::pipe;

    #[test]
    fn a_message_brings_its_bytes_and_descriptors_and_says_when_it_was_cut() {
        let (near, far) = pair().unwrap();
        let mut buffer = [0; 4];
        assert_eq!(receive(&far, &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let (read, write) = pipe::pair(0).unwrap();
        send(&near, b"abcd", &[write.as_fd()]).unwrap();
        drop(write);
        let message = receive(&far, &mut buffer).unwrap();
        assert_eq!((&buffer, message.len, message.descriptors.len(), message.is_cut), (b"abcd", 4, 1, false));
        rustix::io::write(&message.descriptors[0], b"x").unwrap();
        drop(message);
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x", "no other copy of the pipe's end is left");
        send(&near, b"abcde", &[]).unwrap();
        assert!(receive(&far, &mut buffer).unwrap().is_cut);
        send(&near, b"abcd", &[near.as_fd(); DESCRIPTORS]).unwrap();
        assert_eq!(receive(&far, &mut buffer).unwrap().descriptors.len(), DESCRIPTORS);
        assert!(send(&near, b"abcd", &[near.as_fd(); 2 * DESCRIPTORS]).is_err());
        drop(near);
        let end = receive(&far, &mut buffer).unwrap();
        assert!(end.len == 0 && end.descriptors.is_empty() && !end.is_cut);
    }
}
