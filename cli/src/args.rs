//! Letters and words that all commands share.

use clap::Args;
use std::path::PathBuf;

/// What every command takes.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Common {
    /// Answer every question with yes
    #[arg(short, long)]
    pub quiet: bool,
    /// Run every check, print the plan, change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Say more
    #[arg(short, long)]
    pub verbose: bool,
    /// Answer with one JSON object
    #[arg(long)]
    pub json: bool,
    /// Wait so long for another operator's command
    #[arg(long, value_name = "SECONDS")]
    pub wait_lock: Option<u64>,
    /// Give up waiting (75) after so long; what was begun goes on as a job
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Return only when what the command sets going is complete too
    #[arg(long)]
    pub wait: bool,
    /// Do nothing unless the term is N
    #[arg(long, value_name = "N")]
    pub expect_term: Option<u64>,
    /// Ask the node of /etc/backstay/NAME.toml
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub node: Option<String>,
    /// Ask the node of this file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the manual page
    #[arg(short, long)]
    pub man: bool,
}

/// `-C`.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct ContextArg {
    /// Primary or failover id of the context
    #[arg(short = 'C', long = "context", value_name = "ID")]
    pub id: Option<u32>,
}

impl ContextArg {
    pub(crate) fn required(self) -> Result<u32, crate::error::CliError> {
        self.id
            .ok_or_else(|| crate::error::CliError::usage("which context? -C ID is missing"))
    }
}

/// What `init` was asked for.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct InitArgs {
    /// Try it on one machine: two nodes, paired, on loopback
    #[arg(long, num_args = 2, value_names = ["PRODUCTION", "RECOVERY"], conflicts_with_all = ["peer", "name"])]
    pub local: Vec<String>,
    /// Pair with the node that printed this string
    #[arg(long, value_name = "HOST:PORT#CODE")]
    pub peer: Option<String>,
    /// Name of this node (default: the host's)
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Address to listen at for peers
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Where journals and state are kept
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where nodes' files are kept ([`crate::config_dir`]).
    #[arg(skip)]
    pub config_dir: PathBuf,
    /// The file to write, when `--config FILE` or `--node NAME` says so; else `NAME.toml` in `config_dir`.
    #[arg(skip)]
    pub config: Option<PathBuf>,
    /// Whether to answer questions with yes (`-q`).
    #[arg(skip)]
    pub quiet: bool,
    /// Whether only to say what would be done (`-n`).
    #[arg(skip)]
    pub dry_run: bool,
}

/// How an attach helper is set up: by its command line alone, which must have the first five of these.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachHelperArgs {
    /// The user that the daemon runs as, by name or number
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Socket to listen at; `[attach] helper` of the node's file
    #[arg(long, value_name = "SOCKET")]
    pub socket: Option<PathBuf>,
    /// The daemon's NBD socket
    #[arg(long, value_name = "SOCKET")]
    pub exports: Option<PathBuf>,
    /// Where devices are written down; not in the daemon's state
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Mount nowhere but below this folder; may be given more than once
    #[arg(long, value_name = "DIR")]
    pub mount_root: Vec<PathBuf>,
    /// Where devices get their names; as in the node's file
    #[arg(long, value_name = "DIR", default_value = "/dev/backstay")]
    pub dev_root: PathBuf,
    /// End processes of this user in `rtumnt -f`, and of nobody else; may be given more than once
    #[arg(long, value_name = "USER")]
    pub may_end: Vec<String>,
    /// How long a device waits for a daemon that is away
    #[arg(long, value_name = "TIME", default_value = "2m")]
    pub patience: String,
}
