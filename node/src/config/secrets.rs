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
use crate::identity::TokenKeys;

/// The shortest key of the API and token of the admin listener, in characters.
const TOKEN_CHARS_MIN: usize = 32;
/// Files of secrets are short: a longer one is another file by mistake.
const SECRET_BYTES_MAX: u64 = 16 << 10;
/// Sets of keys are longer.
const JWKS_BYTES_MAX: u64 = 1 << 20;

/// Every secret of one node, read once at start. `Debug` shows none.
#[derive(Clone, Debug)]
pub struct Secrets {
    /// The cluster key; `None` only while checking, where the development key is still to be made.
    pub cluster: Option<ClusterKey>,
    /// Key of the HTTP API; `None`: none is asked for.
    pub api_key: Option<SecretText>,
    /// Token of the admin listener; `None`: none is asked for.
    pub admin_token: Option<SecretText>,
    /// Keys that sign tokens, by product; products without one are not there.
    pub jwt_keys: BTreeMap<String, TokenKeys>,
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
        let mut keys = TokenKeys::default();
        for (field, path, add) in [
            ("jwt_key_file", &product.jwt_key_file, add_secret as AddKeys),
            ("jwt_public_key_file", &product.jwt_public_key_file, add_pem),
            ("jwt_jwks_file", &product.jwt_jwks_file, add_jwks),
        ] {
            let added = path.as_ref().map(|path| add(&mut keys, path));
            if let Some(Err(problem)) = added {
                fail(&format!("products.{name}.{field}"), problem);
            }
        }
        if !keys.is_empty() {
            jwt_keys.insert(name.clone(), keys);
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

/// Adds what is in a file to the keys of a product.
type AddKeys = fn(&mut TokenKeys, &Path) -> Result<(), String>;

fn add_secret(keys: &mut TokenKeys, path: &Path) -> Result<(), String> {
    let mut bytes = read_private(path)?;
    while bytes.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        bytes.pop();
    }
    keys.add_secret(&bytes).map_err(|why| format!("{}: {why}", path.display()))
}

fn add_pem(keys: &mut TokenKeys, path: &Path) -> Result<(), String> {
    let bytes = read_whole(path, SECRET_BYTES_MAX)?;
    keys.add_pem(&bytes).map_err(|why| format!("{}: {why}", path.display()))
}

fn add_jwks(keys: &mut TokenKeys, path: &Path) -> Result<(), String> {
    let bytes = read_whole(path, JWKS_BYTES_MAX)?;
    match keys.add_jwks(&bytes) {
        // A set of public keys is nobody's secret; one shared key makes it one.
        Ok(true) => check_private(path),
        Ok(false) => Ok(()),
        Err(why) => Err(format!("{}: {why}", path.display())),
    }
}

/// The content of a file that only its owner (and perhaps its group) can read.
fn read_private(path: &Path) -> Result<Vec<u8>, String> {
    check_private(path)?;
    read_whole(path, SECRET_BYTES_MAX)
}

/// Whether a secret may be kept in this file: only its owner and perhaps its group can read it.
pub(crate) fn check_private(path: &Path) -> Result<(), String> {
    let name = path.display();
    if about_file(path)?.mode() & 0o007 != 0 {
        return Err(format!("{name} is open to every user of this host: chmod 600 {name}"));
    }
    Ok(())
}

fn read_whole(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    let name = path.display();
    if about_file(path)?.len() > bytes_max {
        return Err(format!("{name} is too long for a key"));
    }
    fs::read(path).map_err(|cause| format!("{name}: {cause}"))
}

fn about_file(path: &Path) -> Result<fs::Metadata, String> {
    let name = path.display();
    let about = fs::metadata(path).map_err(|cause| format!("{name}: {cause}"))?;
    if about.is_file() { Ok(about) } else { Err(format!("{name} is not a file")) }
}

/// Where the development key of this user is kept.
fn development_key_path() -> Result<PathBuf, String> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
    let state = state.ok_or("neither XDG_STATE_HOME nor HOME is set: set mesh.key_file")?;
    Ok(state.join("meshd/development.key"))
}
