package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01-proxy/proxy/audit"
	"github.com/ds01/ds01-proxy/proxy/peercred"
)

// A Connection header with many names, beside many headers, is no work to speak
// of: it once cost the square of its length.
func TestManyConnectionNamesAreCheap(t *testing.T) {
	b := newBed(t)
	var text strings.Builder
	text.WriteString("GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: zz")
	for i := range 9000 {
		fmt.Fprintf(&text, ",n%d", i)
	}
	text.WriteString("\r\nX-Kept: 1\r\nN7: dropped\r\n")
	for i := range 4000 {
		fmt.Fprintf(&text, "A%d:\r\n", i)
	}
	text.WriteString("\r\n")
	began := time.Now()
	got := b.raw(t, text.String())
	if got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	// The square took most of a minute; no machine is that slow with this.
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("one ping took %v", took)
	}
	if a := b.engine.take(); len(a) != 1 || a[0].Header.Get("X-Kept") != "1" || a[0].Header.Get("N7") != "" {
		t.Error("headers that Connection names arrived, or others did not")
	}
}

func TestLongRequestsAreRefused(t *testing.T) {
	b := newBed(t)
	for _, c := range []struct {
		name, text string
		status     int
	}{
		{"path", "GET /containers/" + strings.Repeat("a", 5000) + "/json HTTP/1.1\r\nHost: d\r\n\r\n", http.StatusRequestURITooLong},
		{"header", "GET /_ping HTTP/1.1\r\nHost: d\r\nX: " + strings.Repeat("a", 200<<10) + "\r\n\r\n", http.StatusRequestHeaderFieldsTooLarge},
		{"values", createText(`{"HostConfig":{"DeviceRequests":[{}` + strings.Repeat(",{}", 200000) + "]}}"), http.StatusRequestEntityTooLarge},
		{"references", createText(`{"Image":"i","HostConfig":{"VolumesFrom":["alices"` + strings.Repeat(`,"alices"`, 300) + `]}}`), http.StatusBadRequest},
		{"labels", createText(`{"Image":"i","Labels":{"x":"` + strings.Repeat("a", 300<<10) + `"}}`), http.StatusForbidden},
		{"written out", createText(`{"Image":"i","HostConfig":{"DeviceRequests":[{}` + strings.Repeat(`,{}`, 99000) + `]}}`), http.StatusRequestEntityTooLarge},
	} {
		got := b.raw(t, c.text)
		if got.status != c.status {
			t.Errorf("%s: %d %.200s, want %d", c.name, got.status, got.body, c.status)
		}
		if len(got.body) > 1000 {
			t.Errorf("%s: the answer has %d bytes", c.name, len(got.body))
		}
	}
	if a := b.engine.take(); len(a) > 0 {
		t.Errorf("%d arrived", len(a))
	}
}

func createText(body string) string {
	return fmt.Sprintf("POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// One user's connections are bounded, and others' are not touched by that.
func TestConnectionsAreBoundedByUser(t *testing.T) {
	b := newBed(t)
	conns := make([]net.Conn, 0, maxConns)
	for range maxConns {
		conns = append(conns, b.dial(t, "alice"))
	}
	got := readReply(t, bufio.NewReader(b.dial(t, "alice")), "GET")
	if got.status != http.StatusTooManyRequests || !strings.Contains(got.message(), "which is the limit") {
		t.Errorf("one more: %d %s", got.status, got.body)
	}
	b.peers.set(peercred.Peer{UID: 1003}, nil)
	text := "GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n"
	other := b.dial(t, "admin")
	if _, err := io.WriteString(other, text); err != nil {
		t.Fatal(err)
	}
	if got := readReply(t, bufio.NewReader(other), text); got.status != 200 {
		t.Errorf("somebody else: %d", got.status)
	}
	for _, c := range conns {
		c.Close()
	}
	b.peers.set(peercred.Peer{UID: 1001}, nil)
	deadline := time.Now().Add(10 * time.Second)
	for {
		c := b.dial(t, "alice")
		_, _ = io.WriteString(c, text)
		if got := readReply(t, bufio.NewReader(c), text); got.status == 200 {
			break
		}
		c.Close()
		if time.Now().After(deadline) {
			t.Fatal("connections that were closed still count")
		}
	}
}

// A shortage says nothing about who the caller is, and is not remembered.
func TestAShortageIsNotAnIdentity(t *testing.T) {
	b := newBed(t)
	b.peers.set(peercred.Peer{}, fmt.Errorf("peer credentials: %w", unix.EMFILE))
	got := b.do(t, get, "/_ping", "")
	if got.status != http.StatusServiceUnavailable || !got.closes {
		t.Errorf("%d, closes: %t", got.status, got.closes)
	}
}

// Bodies that are sent slowly hold only a bounded share of memory.
func TestBufferedBodiesAreBounded(t *testing.T) {
	b := newBed(t)
	head := fmt.Sprintf("POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: %d\r\n\r\n{", maxJSON)
	for range maxBuffered / maxJSON {
		if _, err := io.WriteString(b.dial(t, "alice"), head); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for taken := int64(0); taken < maxBuffered; {
		if time.Now().After(deadline) {
			t.Fatalf("only %d bytes are taken", taken)
		}
		time.Sleep(time.Millisecond)
		b.server.buffered.mu.Lock()
		taken = b.server.buffered.have["alice"]
		b.server.buffered.mu.Unlock()
	}
	if got := b.do(t, post, "/containers/create", `{"Image":"i"}`); got.status != http.StatusTooManyRequests {
		t.Errorf("beyond it: %d %s", got.status, got.body)
	}
}

// TestAnEarlyAnswerEndsTheConnection uploads to an Engine that answers before it
// has read everything: what is left of the body must not become a request.
func TestAnEarlyAnswerEndsTheConnection(t *testing.T) {
	b := newBed(t)
	b.engine.answer(func(w http.ResponseWriter, _ *http.Request) {})
	raw, err := net.Listen("unix", b.dir+"/early.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	go func() {
		for {
			c, err := raw.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = bufio.NewReader(c).ReadString('\n')
				_, _ = io.WriteString(c, "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
				time.Sleep(100 * time.Millisecond)
				c.Close()
			}()
		}
	}()
	b.server.engineAddr.Name = b.dir + "/early.sock"
	for _, framing := range []string{"Content-Length: 100000", "Transfer-Encoding: chunked"} {
		c := b.dial(t, "alice")
		br := bufio.NewReader(c)
		text := "PUT /containers/alices/archive?path=/x HTTP/1.1\r\nHost: d\r\n" + framing + "\r\n\r\n"
		if strings.HasPrefix(framing, "Transfer") {
			text += "186a0\r\n"
		}
		if _, err := io.WriteString(c, text+"some of the body"); err != nil {
			t.Fatal(err)
		}
		if got := readReply(t, br, text); got.status != 404 || !got.closes {
			t.Errorf("%s: %d, closes: %t", framing, got.status, got.closes)
		}
		time.Sleep(2 * lingerForBody)
		_, _ = io.WriteString(c, "GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
		if rest, err := io.ReadAll(br); len(rest) > 0 {
			t.Errorf("%s: the rest of the body was answered: %q, %v", framing, rest, err)
		}
	}
}

// TestAClientThatLeavesDoesNotTakeTheRecordWithIt asks for what is only let
// through by a switch, and closes at once.
func TestAClientThatLeavesDoesNotTakeTheRecordWithIt(t *testing.T) {
	b := newBed(t)
	released := make(chan struct{})
	b.engine.answer(func(http.ResponseWriter, *http.Request) { <-released })
	defer close(released)
	c := b.dial(t, "alice")
	if _, err := io.WriteString(c, "DELETE /containers/nobodys?force=1 HTTP/1.1\r\nHost: d\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for len(b.engine.take()) == 0 {
		if time.Now().After(deadline) {
			t.Fatal("the request does not arrive")
		}
		time.Sleep(time.Millisecond)
	}
	c.Close()
	rec := b.records.last(t)
	if rec.Verdict != audit.VerdictFailOpen || rec.Rule != "unowned-container" || rec.FailOpen == "" || !strings.Contains(rec.Reason, "client has gone") {
		t.Errorf("recorded as %+v", rec)
	}
}

// What is let through by a switch inside a filter is recorded too.
func TestAFilterThatFailsOpenIsRecorded(t *testing.T) {
	b := newBed(t)
	b.do(t, get, `/containers/json?filters=%7B%22since%22:%5B%22nobodys%22%5D%7D`, "")
	if rec := b.records.last(t); rec.Verdict != audit.VerdictFailOpen || rec.FailOpen != "unowned-container" {
		t.Errorf("recorded as %+v", rec)
	}
}

// TestTheProxyAddsNoHeaders compares what is sent with what arrives: a header
// that a transport adds, such as Accept-Encoding, changes what the Engine does.
func TestTheProxyAddsNoHeaders(t *testing.T) {
	b := newBed(t)
	for _, target := range []string{"GET /images/json", "GET /containers/json", "HEAD /containers/alices/archive?path=/x"} {
		b.raw(t, target+" HTTP/1.1\r\nHost: somewhere\r\nUser-Agent: mine\r\nX-Registry-Auth: secret\r\nConnection: keep-alive, X-Drop\r\nX-Drop: 1\r\nTe: trailers\r\n\r\n")
		a := b.engine.take()
		if len(a) != 1 {
			t.Fatalf("%s: %d arrived", target, len(a))
		}
		want := http.Header{"User-Agent": {"mine"}, "X-Registry-Auth": {"secret"}}
		if fmt.Sprint(a[0].Header) != fmt.Sprint(want) {
			t.Errorf("%s arrived with %v, want %v", target, a[0].Header, want)
		}
	}
}

// TestEachConnectionHasItsOwnUpstream counts the Engine's connections.
func TestEachConnectionHasItsOwnUpstream(t *testing.T) {
	b := newBed(t)
	seen := make(chan string, 16)
	b.engine.answer(func(_ http.ResponseWriter, r *http.Request) {
		c, ok := r.Context().Value(engineConn{}).(net.Conn)
		if !ok {
			t.Error("the fake Engine does not know its connection")
			return
		}
		seen <- fmt.Sprintf("%p", c)
	})
	text := "GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n"
	var ups []string
	for range 3 {
		c := b.dial(t, "alice")
		br := bufio.NewReader(c)
		var first string
		for i := range 3 {
			if _, err := io.WriteString(c, text); err != nil {
				t.Fatal(err)
			}
			readReply(t, br, text)
			up := <-seen
			if i > 0 && up != first {
				t.Errorf("request %d of one connection came over another upstream", i)
			}
			first = up
		}
		ups = append(ups, first)
	}
	if ups[0] == ups[1] || ups[1] == ups[2] || ups[0] == ups[2] {
		t.Errorf("two clients shared an upstream: %v", ups)
	}
}

// TestEveryFailOpenIsRecorded asks for each thing without an owner that is let
// through beside something else that is allowed anyway.
func TestEveryFailOpenIsRecorded(t *testing.T) {
	b := newBed(t)
	b.engine.answer(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/volumes/create") {
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, `{"Name":"v","Labels":null}`)
			return
		}
		_, _ = io.WriteString(w, `{}`)
	})
	for _, c := range []struct{ target, body, cause string }{
		{"/volumes/create", `{"Name":"v"}`, "unowned-volume"},
		{"/networks/n/connect", `{"Container":"nobodys"}`, "unowned-container"},
		{"/networks/n/disconnect", `{"Container":"nobodys"}`, "unowned-container"},
		{"/build?networkmode=container:nobodys", "", "unowned-container"},
		{"/commit?container=nobodys", "", "unowned-container"},
		{"/containers/create", `{"Image":"i","HostConfig":{"VolumesFrom":["nobodys"]}}`, "unowned-container"},
		{"/session", "", "buildkit"},
	} {
		got := b.do(t, post, c.target, c.body)
		rec := b.records.last(t)
		if got.status >= 400 || rec.FailOpen != c.cause || rec.Verdict != audit.VerdictFailOpen {
			t.Errorf("%s: %d %.200s, recorded as %s, cause %q, want %q", c.target, got.status, got.body, rec.Verdict, rec.FailOpen, c.cause)
		}
	}
}

// TestServingAClosedServerEnds closes a server whose listeners have not begun yet,
// as when the daemon is ended while it starts.
func TestServingAClosedServerEnds(t *testing.T) {
	b := newBed(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: b.socket("late"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.server.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.server.Serve(l, "alice"); err != nil {
		t.Errorf("serving a closed server: %v", err)
	}
	if c, err := net.Dial("unix", b.socket("late")); err == nil {
		c.Close()
		t.Error("the closed server still accepts")
	}
}
