//! Socket activation: NBD sockets that systemd, or whoever started us, has made and hands over.
//!
//! Such a socket is there before the daemon and stays when it stops: a client that connects meanwhile waits instead of being
//! refused. `$LISTEN_FDS`, `$LISTEN_PID` and `$LISTEN_FDNAMES` are those of `sd_listen_fds(3)`.

use anyhow::{Context as _, bail};
use listenfd::ListenFd;
use std::{
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::PathBuf,
};

/// The name that a unit gives to NBD sockets (`FileDescriptorName=`).
const NBD: &str = "nbd";
/// What a socket is called that has no name.
const NAMELESS: [&str; 2] = ["", "unknown"];

/// NBD sockets that were handed over.
#[derive(Debug, Default)]
pub struct HandedOver {
    /// Unix sockets, with their paths as far as they have one.
    pub unix: Vec<(UnixListener, Option<PathBuf>)>,
    /// TCP sockets, with their addresses.
    pub tcp: Vec<(TcpListener, SocketAddr)>,
}

/// Takes the sockets that were handed over to this process, and their number out of the environment, so that no program that
/// is started later takes them for its own.
///
/// # Errors
/// When one is no listening socket, or has a name that is not ours.
pub fn take() -> anyhow::Result<HandedOver> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut passed = ListenFd::from_env();
    let mut out = HandedOver::default();
    for (i, name) in names_of(&names, passed.len()).into_iter().enumerate() {
        if name != NBD && !NAMELESS.contains(&name) {
            bail!("socket '{name}' was handed over ($LISTEN_FDNAMES); only '{NBD}' is known here");
        }
        if let Ok(Some(unix)) = passed.take_unix_listener(i) {
            let path = unix
                .local_addr()
                .ok()
                .and_then(|a| Some(a.as_pathname()?.to_owned()));
            listens(&unix)?;
            out.unix.push((unix, path));
        } else {
            let tcp = passed
                .take_tcp_listener(i)
                .with_context(|| format!("descriptor {} was handed over ($LISTEN_FDS)", i + 3))?
                .context("a socket was handed over twice")?;
            let addr = tcp.local_addr().context("a socket that was handed over")?;
            listens(&tcp)?;
            out.tcp.push((tcp, addr));
        }
    }
    Ok(out)
}

/// A name for each of `count` sockets; those that were not named have none.
fn names_of(names: &str, count: usize) -> Vec<&str> {
    let mut names: Vec<&str> = names.split(':').collect();
    names.resize(count, "");
    names
}

/// A socket that is connected (`Accept=yes`) is one client's, and no daemon's.
fn listens(socket: &impl std::os::fd::AsFd) -> anyhow::Result<()> {
    if !rustix::net::sockopt::socket_acceptconn(socket).context("a socket that was handed over")? {
        bail!("a socket was handed over that does not listen (Accept=no is needed)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_without_a_name_have_none() {
        assert_eq!(names_of("", 0), [""; 0]);
        assert_eq!(names_of("", 2), ["", ""]);
        assert_eq!(names_of("nbd:nbd", 3), ["nbd", "nbd", ""]);
        assert_eq!(names_of("nbd:other", 1), ["nbd"]);
    }
}
