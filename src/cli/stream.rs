//! Standard input on its way to the server.

use std::io::{self, Read};
use std::thread;

use anyhow::bail;
use http_body_util::channel::Sender;
use hyper::body::Bytes;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::client::{Client, Stream};
use super::job::Bar;

/// Bytes read at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Pieces between standard input and the socket.
const PIECES_MAX: usize = 4;

/// Sends all of standard input, with a bar on a terminal; `subject` is what it
/// becomes. Ctrl-C breaks it off.
pub(super) async fn send<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    subject: &str,
    json: bool,
) -> anyhow::Result<T> {
    send_from(io::stdin(), client, path, subject, json).await
}

pub(super) async fn send_from<T: DeserializeOwned>(
    input: impl Read + Send + 'static,
    client: &Client,
    path: &str,
    subject: &str,
    json: bool,
) -> anyhow::Result<T> {
    let (sender, stream) = Stream::new(PIECES_MAX);
    let (sent, mut seen) = watch::channel(0_u64);
    let runtime = Handle::current();
    // Not a thread of the runtime's, which waits for them at its end: a read
    // of a terminal may never return.
    thread::spawn(move || pump(input, sender, &sent, &runtime));
    let bar = Bar::new(subject, json)?;
    bar.step("receiving", None);
    let answer = client.send(path, stream);
    tokio::pin!(answer);
    loop {
        tokio::select! {
            answer = &mut answer => {
                bar.clear();
                return answer;
            }
            Ok(()) = seen.changed() => bar.at(*seen.borrow_and_update()),
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                bar.clear();
                bail!("the import was cancelled; nothing was kept");
            }
        }
    }
}

/// Reads to the end; what cannot be read breaks the stream off, so that its
/// beginning is not taken for the whole.
fn pump(
    mut input: impl Read,
    mut sender: Sender<Bytes, io::Error>,
    sent: &watch::Sender<u64>,
    runtime: &Handle,
) {
    let mut piece = vec![0; PIECE_BYTES];
    let mut total = 0;
    loop {
        match input.read(&mut piece) {
            Ok(0) => return,
            Ok(bytes) => {
                let data = Bytes::copy_from_slice(&piece[..bytes]);
                if runtime.block_on(sender.send_data(data)).is_err() {
                    // The server has answered already.
                    return;
                }
                total += bytes as u64;
                sent.send_replace(total);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => {
                sender.abort(e);
                return;
            }
        }
    }
}
