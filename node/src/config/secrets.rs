//! Secrets in files: the cluster key, tokens, signing keys.
//!
//! Belongs here: reading and making them, and refusing files that others can read.
//! Stays out: what is derived from the cluster key (`mesh_proto::keys`).
//! Format: a cluster key is 32 random bytes as 64 hex digits, one line.
//! Invariants: nothing here prints content; a key file is made in one step, so that nodes started
//! at once end with the same one.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use mesh_proto::keys::ClusterKey;

use super::origin::ConfigError;
use super::{Config, SecretText};

/// The shortest key of the API and token of the admin listener, in characters.
const TOKEN_CHARS_MIN: usize = 32;
/// The shortest key for HS256, in bytes: RFC 7518 §3.2.
const JWT_KEY_BYTES_MIN: usize = 32;
/// Files of secrets are short: a longer one is another file by mistake.
const SECRET_BYTES_MAX: u64 = 16 << 10;

/// Every secret of one node, read once at start. `Debug` shows none.
#[derive(Clone, Debug)]
pub struct Secrets {
    /// The cluster key; `None` only while checking, where the development key is still to be made.
    pub cluster: Option<ClusterKey>,
    /// Key of the HTTP API; `None`: none is asked for.
    pub api_key: Option<SecretText>,
    /// Token of the admin listener; `None`: none is asked for.
    pub admin_token: Option<SecretText>,
    /// Keys that sign tokens, by product.
    pub jwt_keys: BTreeMap<String, JwtKey>,
}

/// A key that signs tokens. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct JwtKey(Vec<u8>);

impl JwtKey {
    /// Takes the key in.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The key itself: for the code that checks signatures, never for logs.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JwtKey(***)")
    }
}

/// What to do about the development key of a node on loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DevelopmentKey {
    /// Read it, and make it first where there is none.
    Make,
    /// Touch nothing: settings are only checked.
    Leave,
}

/// Reads all secrets that `config` names.
///
/// # Errors
/// Every file that is missing, unreadable, open to others or of the wrong form.
pub fn read(config: &Config, development: DevelopmentKey) -> Result<Secrets, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let mut fail = |key: &str, problem: String| {
        let origin = config.origins.of(key);
        errors.push(ConfigError { origin, key: key.to_owned(), problem, allowed: None });
    };
    let mut token = |key: &str, path: &Option<PathBuf>| {
        let path = path.as_ref()?;
        read_token(path).map_err(|problem| fail(key, problem)).ok()
    };
    let api_key = token("api.key_file", &config.api.key_file);
    let admin_token = token("admin.token_file", &config.admin.token_file);
    let cluster =
        cluster_key(config, development).map_err(|(key, problem)| fail(key, problem)).ok().flatten();
    let mut jwt_keys = BTreeMap::new();
    for (name, product) in &config.products.0 {
        let Some(path) = &product.jwt_key_file else { continue };
        match read_jwt_key(path) {
            Ok(key) => drop(jwt_keys.insert(name.clone(), key)),
            Err(problem) => fail(&format!("products.{name}.jwt_key_file"), problem),
        }
    }
    if errors.is_empty() { Ok(Secrets { cluster, api_key, admin_token, jwt_keys }) } else { Err(errors) }
}

fn cluster_key(
    config: &Config,
    development: DevelopmentKey,
) -> Result<Option<ClusterKey>, (&'static str, String)> {
    let mesh = &config.mesh;
    if !mesh.key.expose().is_empty() {
        return parse_cluster_key(mesh.key.expose()).map(Some).map_err(|problem| ("mesh.key", problem));
    }
    if let Some(path) = &mesh.key_file {
        return read_cluster_key(path).map(Some).map_err(|problem| ("mesh.key_file", problem));
    }
    if development == DevelopmentKey::Leave || !mesh.listen.ip().is_loopback() {
        return Ok(None);
    }
    let made = development_key_path().and_then(|path| {
        make_key_file(&path).map_err(|cause| format!("{}: {cause}", path.display()))?;
        read_cluster_key(&path)
    });
    made.map(Some).map_err(|problem| ("mesh.key_file", format!("no development key: {problem}")))
}

/// A new cluster key as text: what `meshctl keygen` writes.
#[must_use]
pub fn generate_cluster_key() -> SecretText {
    let bytes = rand::random::<[u8; 32]>();
    SecretText::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// Writes a new cluster key to `path`, readable by its owner only. A file that is there stays as it
/// is; of several processes that do this at once all end with the same key.
///
/// # Errors
/// When the directory or the file cannot be made.
pub fn make_key_file(path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let directory = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let draft = directory.join(format!(".key-{:016x}", rand::random::<u64>()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let written = writeln!(file, "{}", generate_cluster_key().expose()).and_then(|()| file.sync_all());
    let linked = written.and_then(|()| fs::hard_link(&draft, path));
    fs::remove_file(&draft)?;
    match linked {
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Reads a cluster key from a file.
///
/// # Errors
/// One sentence naming the file, never its content.
pub fn read_cluster_key(path: &Path) -> Result<ClusterKey, String> {
    let text = read_private(path)?;
    let text = String::from_utf8(text).map_err(|_| format!("{} is not text", path.display()))?;
    parse_cluster_key(&text).map_err(|problem| format!("{}: {problem}", path.display()))
}

fn parse_cluster_key(text: &str) -> Result<ClusterKey, String> {
    let digits: Option<Vec<u8>> =
        text.trim().chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let bytes = digits
        .filter(|digits| digits.len() == 64)
        .map(|digits| digits.chunks(2).map(|pair| pair.iter().fold(0, |b, d| b << 4 | d)).collect());
    let bytes = bytes.and_then(|bytes: Vec<u8>| <[u8; 32]>::try_from(bytes).ok());
    bytes.map(ClusterKey::new).ok_or_else(|| {
        "not a cluster key: 64 hex digits (make one with `(umask 077; meshctl keygen > FILE)`)".into()
    })
}

fn read_token(path: &Path) -> Result<SecretText, String> {
    let text =
        String::from_utf8(read_private(path)?).map_err(|_| format!("{} is not text", path.display()))?;
    let text = text.trim();
    if text.chars().count() < TOKEN_CHARS_MIN || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(format!("{} must hold one word of {TOKEN_CHARS_MIN} characters or more", path.display()));
    }
    Ok(SecretText::new(text))
}

fn read_jwt_key(path: &Path) -> Result<JwtKey, String> {
    let mut bytes = read_private(path)?;
    while bytes.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        bytes.pop();
    }
    if bytes.len() < JWT_KEY_BYTES_MIN {
        return Err(format!("{} must hold {JWT_KEY_BYTES_MIN} bytes or more", path.display()));
    }
    Ok(JwtKey(bytes))
}

/// The content of a file that only its owner (and perhaps its group) can read.
fn read_private(path: &Path) -> Result<Vec<u8>, String> {
    let name = path.display();
    if check_private(path)? > SECRET_BYTES_MAX {
        return Err(format!("{name} is too long for a secret"));
    }
    fs::read(path).map_err(|cause| format!("{name}: {cause}"))
}

/// Whether a secret may be kept in this file: only its owner and perhaps its group can read it. Its length.
pub(crate) fn check_private(path: &Path) -> Result<u64, String> {
    let name = path.display();
    let about = fs::metadata(path).map_err(|cause| format!("{name}: {cause}"))?;
    if !about.is_file() {
        return Err(format!("{name} is not a file"));
    }
    if about.mode() & 0o007 != 0 {
        return Err(format!("{name} is open to every user of this host: chmod 600 {name}"));
    }
    Ok(about.len())
}

/// Where the development key of this user is kept.
fn development_key_path() -> Result<PathBuf, String> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
    let state = state.ok_or("neither XDG_STATE_HOME nor HOME is set: set mesh.key_file")?;
    Ok(state.join("meshd/development.key"))
}
