//! Hooks that answer, refuse, hang and lie, over real sockets.

use std::sync::atomic::AtomicUsize;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::identity::testing::Asking;

/// An HTTP server that answers with what `answer` makes of each question: a status line's rest and a
/// body; without one it is silent.
struct Application {
    url: HookUrl,
    connections: Arc<AtomicUsize>,
    tasks: Tasks,
}

type Answering = fn(&Value) -> Option<(&'static str, String)>;

impl Application {
    async fn new(answer: Answering) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tasks, connections) = (Tasks::new(), Arc::new(AtomicUsize::new(0)));
        let (group, count) = (tasks.clone(), connections.clone());
        tasks.spawn("application", OnPanic::EndTask, async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                group.spawn("connection", OnPanic::EndTask, serve(stream, answer));
            }
        });
        let url = HookUrl::parse(&format!("http://{address}/auth?v=1")).unwrap();
        Self { url, connections, tasks }
    }

    fn hook(&self, change: impl FnOnce(&mut HookSettings)) -> Hook {
        let mut settings = HookSettings {
            url: self.url.clone(),
            headers: vec!["authorization".into(), "cookie".into()],
            query: vec!["token".into()],
            timeout: Duration::from_secs(5),
            cache: Duration::ZERO,
            break_after: 3,
            break_for: Duration::from_secs(60),
        };
        change(&mut settings);
        Hook::new("chat".into(), settings, Clock::start(), self.tasks.clone())
    }
}

async fn serve(mut stream: TcpStream, answer: Answering) {
    let mut read = Vec::new();
    loop {
        let mut bytes = [0; 4_096];
        match stream.read(&mut bytes).await {
            Ok(len) if len > 0 => read.extend_from_slice(&bytes[..len]),
            _ => return,
        }
        let text = String::from_utf8_lossy(&read).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        assert!(head.starts_with("POST /auth?v=1 HTTP/1.1\r\n"), "{head}");
        let Ok(question) = serde_json::from_str(body) else { continue };
        read.clear();
        let Some((status, body)) = answer(&question) else { continue };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

async fn asked(hook: &Hook, asking: &Asking) -> Said {
    let question = asking.of(|facts| hook.question(facts));
    hook.ask(question).await
}

fn status(said: &Said) -> u16 {
    said.as_ref().map_or_else(|denied| denied.status, |_| 200)
}

#[tokio::test]
async fn it_is_told_what_the_settings_name_and_says_who_it_is() {
    fn answer(question: &Value) -> Option<(&'static str, String)> {
        let expected = json!({
            "product": "chat", "method": "GET", "path": "/ws", "ip": "127.0.0.1",
            "headers": [["authorization", "Basic YTpi"], ["cookie", "a=1"], ["cookie", "b=2"]],
            "query": [["token", "a b"]],
        });
        assert_eq!(*question, expected);
        Some(("200 OK", json!({"uid": "alice", "more": 1}).to_string()))
    }
    let application = Application::new(answer).await;
    let hook = application.hook(|_| {});
    let headers = "Cookie: a=1\r\nX-Other: 1\r\nAuthorization: Basic YTpi\r\ncookie: b=2\r\n";
    let asking = Asking { headers: headers.into(), ..Asking::by_query("token=a%20b&uid=mallory") };
    assert_eq!(asked(&hook, &asking).await, Ok(Some("alice".into())));
    assert_eq!(asked(&hook, &asking).await, Ok(Some("alice".into())));
    assert_eq!(application.connections.load(Ordering::Relaxed), 1, "a connection is kept");
}

#[tokio::test]
async fn answers_mean_what_they_say_and_nonsense_is_no_answer() {
    /// The token says how to answer.
    fn answer(question: &Value) -> Option<(&'static str, String)> {
        let long = format!("a\nb{}", "x".repeat(1_000));
        Some(match question["query"][0][1].as_str().unwrap() {
            "nobody" => ("200 OK", "{}".into()),
            "banned" => {
                let refuse = json!({"status": 418, "code": "banned", "message": long});
                ("200 OK", json!({"uid": "alice", "refuse": refuse}).to_string())
            }
            "odd" => ("200 OK", json!({"refuse": {"status": 200, "code": "a b"}}).to_string()),
            "401" => ("401 Unauthorized", "who?".into()),
            "403" => ("403 Forbidden", json!({"refuse": {"message": "not you"}}).to_string()),
            "429" => ("429 Too Many Requests", String::new()),
            "500" => ("500 Oops", json!({"uid": "alice"}).to_string()),
            "302" => ("302 Found", String::new()),
            "text" => ("200 OK", "alice".into()),
            "number" => ("200 OK", json!({"uid": 7}).to_string()),
            _ => ("200 OK", json!({"uid": "x".repeat(ANSWER_BYTES_MAX)}).to_string()),
        })
    }
    let application = Application::new(answer).await;
    let hook = application.hook(|settings| settings.break_after = 100);
    for (token, expected, code) in [
        ("nobody", 200, ""),
        ("banned", 418, "banned"),
        ("odd", 403, "refused"),
        ("401", 401, "refused"),
        ("403", 403, "refused"),
        ("429", 503, "hook_failed"),
        ("500", 503, "hook_failed"),
        ("302", 503, "hook_failed"),
        ("text", 503, "hook_failed"),
        ("number", 503, "hook_failed"),
        ("long", 503, "hook_failed"),
    ] {
        let said = asked(&hook, &Asking::by_query(&format!("token={token}"))).await;
        assert_eq!(status(&said), expected, "{token}: {said:?}");
        let Err(denied) = said else { continue };
        assert_eq!(denied.code, code, "{token}");
        assert_eq!(denied.retry_after.is_some(), expected == 503, "{token}");
        assert!(denied.message.len() <= MESSAGE_CHARS_MAX && !denied.message.contains('\n'), "{token}");
    }
}

#[tokio::test]
async fn an_answer_counts_for_its_time_for_the_same_question_only() {
    static QUESTIONS: AtomicUsize = AtomicUsize::new(0);
    fn answer(_: &Value) -> Option<(&'static str, String)> {
        let count = QUESTIONS.fetch_add(1, Ordering::Relaxed);
        Some(("200 OK", json!({"uid": format!("user{count}")}).to_string()))
    }
    let application = Application::new(answer).await;
    let hook = application.hook(|settings| settings.cache = Duration::from_secs(60));
    let by_token = |token: &str| Asking::by_query(&format!("token={token}"));
    assert_eq!(asked(&hook, &by_token("a")).await, Ok(Some("user0".into())));
    assert_eq!(asked(&hook, &by_token("a&other=1")).await, Ok(Some("user0".into())));
    assert_eq!(asked(&hook, &by_token("b")).await, Ok(Some("user1".into())));
    assert_eq!(asked(&hook, &Asking::by_header("Cookie: a")).await, Ok(Some("user2".into())));
}

#[tokio::test]
async fn one_that_is_silent_is_given_up_then_left_alone() {
    let application = Application::new(|_| None).await;
    let hook = application.hook(|settings| settings.timeout = Duration::from_millis(20));
    let mut pauses = Vec::new();
    for _ in 0..5 {
        let said = asked(&hook, &Asking::by_query("")).await;
        pauses.push(said.unwrap_err().retry_after.unwrap().as_secs());
    }
    assert_eq!(pauses[..3], [1, 1, 1]);
    assert!(pauses[3..].iter().all(|pause| (50..60).contains(pause)), "{pauses:?}");
    assert_eq!(application.connections.load(Ordering::Relaxed), 3);
    let mut out = Exposition::default();
    Hook::write_all([&hook].into_iter(), &mut out);
    let text = out.into_text();
    assert!(text.contains("meshd_hook_requests_total{product=\"chat\",outcome=\"failed\"} 3\n"), "{text}");
    assert!(
        text.contains("meshd_hook_requests_total{product=\"chat\",outcome=\"left_alone\"} 2\n"),
        "{text}"
    );
    assert!(text.contains("meshd_hook_left_alone{product=\"chat\"} 1\n"), "{text}");
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_is_replaced() {
    /// Says goodbye with each answer, without a word in its head.
    async fn once(listener: TcpListener) {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = [0; 4_096];
            let _ = stream.read(&mut bytes).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"uid\":\"a\"}").await;
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let application = Application::new(|_| None).await;
    let url = HookUrl::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
    application.tasks.spawn("once", OnPanic::EndTask, once(listener));
    let hook = application.hook(|settings| settings.url = url);
    for _ in 0..5 {
        assert_eq!(asked(&hook, &Asking::by_query("")).await, Ok(Some("a".into())));
    }
}

#[test]
fn a_hook_is_asked_by_plain_http() {
    let url = |text: &str| {
        HookUrl::parse(text).map(|url| format!("{} {} {}", url.authority, url.address, url.path))
    };
    assert_eq!(url("http://app:8080/auth?a=b").as_deref(), Some("app:8080 app:8080 /auth?a=b"));
    assert_eq!(url("http://app").as_deref(), Some("app app:80 /"));
    assert_eq!(url("http://[::1]:1/").as_deref(), Some("[::1]:1 [::1]:1 /"));
    for bad in ["", "app:80", "/auth", "https://app/", "http:///", "http://user:password@app/"] {
        assert_eq!(url(bad), None, "{bad}");
    }
}
