package proxy

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"

	"github.com/ds01/ds01-proxy/policy"
)

// A smuggling is what two parsers could split differently, and what must come of
// it.
type smuggling struct {
	name, text string
	// answers are the status codes that alice gets until the connection ends, and
	// arrivals the requests that the Engine gets: method and path, and nobody's but
	// alice's.
	answers, arrivals string
}

// smugglings reads testdata/smuggling.txt: a name, lines of bytes, a line with the
// answers and then what arrives. Only \r, \n, \t, \0 and \x0b are escapes, and a line
// ends where they say so.
func smugglings(t *testing.T) []smuggling {
	t.Helper()
	file, err := os.ReadFile("testdata/smuggling.txt")
	if err != nil {
		t.Fatal(err)
	}
	unescape := strings.NewReplacer(`\r`, "\r", `\n`, "\n", `\t`, "\t", `\0`, "\x00", `\x0b`, "\x0b")
	var all []smuggling
	for part := range strings.SplitSeq(strings.TrimPrefix(string(file), "== "), "\n== ") {
		head, tail, ok := strings.Cut(part, "\n-- ")
		name, lines, _ := strings.Cut(head, "\n")
		answers, arrivals, _ := strings.Cut(tail, "\n")
		if !ok || lines == "" || answers == "" {
			t.Fatalf("%q is not a case", name)
		}
		text := unescape.Replace(strings.ReplaceAll(lines, "\n", ""))
		all = append(all, smuggling{name, text, answers, strings.TrimSpace(arrivals)})
	}
	return all
}

// answerSmuggled answers like an Engine where the status matters.
func answerSmuggled(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch _, path := splitVersion(r.URL.Path); path {
	case "/containers/create":
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"Id":"`+id("c")+`"}`)
	case "/containers/json":
		_, _ = io.WriteString(w, `[]`)
	case "/grpc", "/build":
		w.WriteHeader(http.StatusInternalServerError)
	default:
		_, _ = io.WriteString(w, `{}`)
	}
}

// TestWhatIsAllowedIsWhatArrives sends each smuggling on one connection: as many
// requests as are allowed reach the Engine, whole, as alice's, and none more.
func TestWhatIsAllowedIsWhatArrives(t *testing.T) {
	b := newBed(t)
	b.engine.answer(answerSmuggled)
	for _, c := range smugglings(t) {
		t.Run(c.name, func(t *testing.T) {
			conn := b.dial(t, "alice")
			if _, err := io.WriteString(conn, c.text); err != nil {
				t.Fatal(err)
			}
			if got := answers(t, bufio.NewReader(conn)); got != c.answers {
				t.Errorf("answered %s, want %s", got, c.answers)
			}
			var got []string
			for _, a := range b.engine.take() {
				got = append(got, checkArrival(t, a))
			}
			if strings.Join(got, "\n") != c.arrivals {
				t.Errorf("arrived:\n%s\nwant:\n%s", strings.Join(got, "\n"), c.arrivals)
			}
		})
	}
}

// TestWhatIsRelayedIsWhatWasSent sends each smuggling through a proxy that refuses
// nothing, and to the Engine itself: the same requests arrive, with the same bodies.
func TestWhatIsRelayedIsWhatWasSent(t *testing.T) {
	for _, mode := range []policy.Mode{policy.ModeMonitoring, policy.ModeDisabled} {
		b := newBed(t, withMode(mode))
		b.engine.answer(answerSmuggled)
		for _, c := range smugglings(t) {
			if c.answers == "400" || strings.HasPrefix(c.text, "CONNECT") {
				// What breaks off half-way arrives in part, or not at all; and a target
				// without a path cannot be relayed.
				continue
			}
			direct, err := net.Dial("unix", b.engine.socket)
			if err != nil {
				t.Fatal(err)
			}
			want := b.arrivals(t, direct, c.text)
			direct.Close()
			if got := b.arrivals(t, b.dial(t, "alice"), c.text); got != want {
				t.Errorf("%v: %s: arrives as\n%swant\n%s", mode, c.name, got, want)
			}
		}
	}
}

// arrivals sends text and returns what of it arrives at the Engine by the time that
// the connection ends.
func (b *bed) arrivals(t *testing.T, conn net.Conn, text string) string {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	answers(t, bufio.NewReader(conn))
	out := ""
	for _, a := range b.engine.take() {
		u, err := url.Parse(a.Target)
		if err != nil {
			t.Fatal(err)
		}
		if u.Path == "/containers/create" {
			// Both modes put the owner's marks on it.
			a.Body = "marked"
		}
		out += fmt.Sprintf("%s %s %q\n", a.Method, u.RequestURI(), a.Body)
	}
	return out
}

// answers reads the status of every answer until the connection ends.
func answers(t *testing.T, br *bufio.Reader) string {
	t.Helper()
	var all []string
	for {
		if _, err := br.Peek(1); err == io.EOF {
			return strings.Join(all, " ")
		} else if err != nil {
			t.Fatalf("after %v: %v", all, err)
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("after %v: %v", all, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatalf("after %v: %v", all, err)
		}
		all = append(all, fmt.Sprint(resp.StatusCode))
	}
}

// checkArrival wants a request to be alice's and nothing of its framing to be the
// client's, and returns its method and path.
func checkArrival(t *testing.T, a arrival) string {
	t.Helper()
	for _, key := range []string{"Connection", "Upgrade", "Expect", "Trailer", "Te", "Http2-Settings"} {
		if a.Header.Get(key) != "" {
			t.Errorf("%s %s arrives with %s: %s", a.Method, a.Target, key, a.Header.Get(key))
		}
	}
	u, err := url.ParseRequestURI(a.Target)
	if err != nil {
		t.Fatal(err)
	}
	_, path := splitVersion(u.Path)
	switch path {
	case "/containers/create":
		var req container.CreateRequest
		if err := json.Unmarshal([]byte(a.Body), &req); err != nil || req.Config == nil || req.Labels["ds01.user"] != "alice" || req.Image != "busybox:local" {
			t.Errorf("create arrives as %q: %v", a.Body, err)
		}
	case "/containers/json", "/networks/prune":
		if !strings.Contains(u.Query().Get("filters"), "ds01.user=alice") {
			t.Errorf("%s arrives unfiltered: %s", path, a.Target)
		}
	}
	return a.Method + " " + strings.Replace(path, aliceID, "alices", 1)
}

// TestABodyBesideNoAttachIsRelayed sends a body to what ends like an attach and is
// none: it must not wait for a tunnel.
func TestABodyBesideNoAttachIsRelayed(t *testing.T) {
	b := newBed(t, withMode(policy.ModeDisabled))
	for _, path := range []string{"/nothing/attach", "/v1.41/exec/x/attach"} {
		got := b.raw(t, "POST "+path+" HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc")
		arrived := b.engine.take()
		if got.status != http.StatusOK || len(arrived) != 1 || arrived[0].Body != "abc" {
			t.Errorf("%s: %d, and %v arrived", path, got.status, arrived)
		}
	}
}
