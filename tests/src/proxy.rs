//! haproxy and nginx in front of a cluster, configured by the very text of `docs/balancers.md`.
//!
//! Belongs here: taking the text out, putting the test's addresses in, the process.
//! Stays out: the balancer of a few lines that needs no package ([`crate::balancer`]).

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use tokio::net::TcpStream;
use tokio::process::Command;

use crate::cluster::Cluster;
use crate::process::{Process, repository};
use crate::wait::until;

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// haproxy.
    Haproxy,
    /// nginx.
    Nginx,
}

/// One that runs.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    process: Process,
    directory: PathBuf,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }

    /// The block of the documentation.
    fn documented(self) -> String {
        let page = repository().join("docs/balancers.md");
        let text = std::fs::read_to_string(&page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
        let opening = format!("```{}\n", self.name());
        let (_, rest) = text.split_once(&opening).unwrap_or_else(|| panic!("no {} block", self.name()));
        rest.split_once("```").expect("a block that ends").0.to_owned()
    }
}

impl Proxy {
    /// Starts one in front of the first three nodes and waits until it listens.
    ///
    /// # Panics
    /// When the program is not installed, or does not like what the documentation says.
    pub async fn start(kind: Kind, cluster: &Cluster) -> Self {
        let free = TcpListener::bind(("127.0.0.1", 0)).expect("loopback");
        let addr = free.local_addr().expect("bound");
        drop(free);
        let mut text = kind.documented().replace("10.0.0.1:80", &addr.to_string());
        for (number, node) in cluster.nodes.iter().take(3).enumerate() {
            let documented = format!("10.0.0.{}:4080", 11 + number);
            let with_check = format!("{documented} port 4082");
            assert!(text.contains(&documented), "three nodes in the {} block", kind.name());
            text = text.replace(&with_check, &format!("{} port {}", node.at.client, node.at.admin.port()));
            text = text.replace(&documented, &node.at.client.to_string());
        }
        let directory = std::env::temp_dir().join(format!("meshd-{}-{}", kind.name(), addr.port()));
        std::fs::create_dir_all(&directory).expect("a directory of our own");
        let file = directory.join("balancer.conf");
        let mut command = match kind {
            Kind::Haproxy => {
                let mut command = Command::new("/usr/sbin/haproxy");
                command.arg("-db").arg("-f").arg(&file);
                command
            }
            Kind::Nginx => {
                let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|what| format!("{what}_temp_path {}/{what};\n", directory.display()));
                text = format!(
                    "daemon off;\nmaster_process off;\npid {0}/pid;\nerror_log stderr;\n\
                     events {{ worker_connections 4096; }}\nhttp {{\naccess_log off;\n{1}{text}}}\n",
                    directory.display(),
                    paths.concat(),
                );
                let mut command = Command::new("/usr/sbin/nginx");
                command.arg("-p").arg(&directory).arg("-c").arg(&file);
                command
            }
        };
        std::fs::write(&file, text).expect("a file of our own");
        let process = Process::start(kind.name(), &mut command);
        until("the balancer to listen", || async {
            TcpStream::connect(addr)
                .await
                .map(drop)
                .map_err(|e| format!("{e}: {:?}", process.output().lines()))
        })
        .await;
        Self { addr, process, directory }
    }

    /// Where clients connect.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        !self.process.has_ended()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
