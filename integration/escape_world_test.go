package integration

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// A hole is one thing that alice asks for to get at the host.
type hole struct {
	// rule is the rule that refuses it.
	rule, name string
	// host is what is asked of HostConfig for a container that runs script; body is
	// the whole request where it is another, and target where it goes. Words in
	// underscores stand for what only the yard knows.
	host, script string
	body, target string
	// prepare is done before, and what it makes goes with the rest.
	prepare func(y *yard)
	// open reports whether the hole is open, by the answer of the Engine itself.
	open func(y *yard, a answer) bool
	// shut says why it is not open on the Engine itself.
	shut string
	// says is what the proxy says, where it is not the rule's name.
	says string
	// dropped is true where the proxy leaves the wish out, and makes the container.
	dropped bool
}

func (h *hole) title() string { return strings.ReplaceAll(h.rule+", "+h.name, "/", "|") }

// request is the hole's target and body.
func (h *hole) request(y *yard) (target, body string) {
	target, body = h.target, h.body
	if target == "" {
		target = "/containers/create"
	}
	if body == "" && h.target == "" {
		script, err := json.Marshal(h.script)
		if err != nil {
			y.t.Fatal(err)
		}
		body = `{"Image":"busybox:local","Tty":true,"Cmd":["sh","-c",` + string(script) + `],"HostConfig":{` + h.host + `}}`
	}
	return y.words(target), y.words(body)
}

// A yard is where holes are tried: a file that only root may read and the same as a
// disk stand for what the host keeps from its users.
type yard struct {
	*world
	// monitored is a proxy that only says what it would refuse.
	monitored *lab.Proxy
	marker    string
	disk      syscall.Stat_t
	diskPath  string
	dir       string
	// logs are sockets of the test's own, by their networks.
	logs map[string]net.PacketConn
	// want are the rules whose refusals were recorded and not made.
	want []string
}

// secret is what the marker says.
const secret = "only-root-may-read-this"

func newYard(t *testing.T) *yard {
	t.Helper()
	classic(t)
	dir, err := os.MkdirTemp("", "ds01y")
	if err != nil {
		t.Fatal(err)
	}
	y := &yard{world: &world{t: t, id: make(map[string]string), engine: lab.HTTPClient(theEngine.Socket)}, dir: dir, marker: filepath.Join(dir, "marker")}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.WriteFile(y.marker, append([]byte(secret), make([]byte, 65536-len(secret))...), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--read-only", "--find", "--show", y.marker).Output()
	if err != nil {
		t.Fatalf("a disk of the test's own: %v: %s", err, out)
	}
	y.diskPath = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", y.diskPath).CombinedOutput(); err != nil {
			t.Errorf("the disk stays: %v: %s", err, out)
		}
	})
	if err := syscall.Stat(y.diskPath, &y.disk); err != nil {
		t.Fatal(err)
	}
	y.logs = map[string]net.PacketConn{"unixgram": y.listen("unixgram", filepath.Join(dir, "log.sock")), "udp": y.listen("udp", "127.0.0.1:0")}
	y.monitored = configured(t, "enforcement: monitoring\nbuilds: {buildkit: deny}\n")
	y.seen = map[string]string{"lists": y.lists()}
	t.Cleanup(func() {
		y.t = t
		y.removeAllBut(y.seen["lists"])
		y.engine.CloseIdleConnections()
	})
	return y
}

func (y *yard) listen(network, address string) net.PacketConn {
	y.t.Helper()
	c, err := net.ListenPacket(network, address)
	if err != nil {
		y.t.Fatal(err)
	}
	y.t.Cleanup(func() { c.Close() })
	return c
}

// words puts what the yard knows in the place of words in underscores.
func (y *yard) words(text string) string {
	major, minor := y.disk.Rdev>>8&0xfff, y.disk.Rdev&0xff|y.disk.Rdev>>12&0xfff00
	return strings.NewReplacer(
		"_MARKER_", y.marker, "_DIR_", y.dir, "_DISK_", y.diskPath, "_MAJOR_", fmt.Sprint(major), "_MINOR_", fmt.Sprint(minor),
		"_PID_", fmt.Sprint(os.Getpid()), "_OWN_", y.id["own"], "_HOSTNET_", y.id["host net"], "_HOSTNET12_", y.id["host net"][:min(12, len(y.id["host net"]))], "_LOG_", y.logs["udp"].LocalAddr().String(),
	).Replace(text)
}

// try sends a hole to a socket.
func (y *yard) try(h *hole, socket string) answer {
	y.t.Helper()
	target, body := h.request(y)
	if strings.HasPrefix(target, "/build?") {
		return ask(y.t, socket, "POST", target, tarOf("Dockerfile", body), "Content-Type", "application/x-tar")
	}
	return ask(y.t, socket, "POST", target, body)
}

// tidy removes what the last hole made.
func (y *yard) tidy() {
	y.t.Helper()
	y.removeAllBut(y.seen["lists"])
}

// TestEscapes tries every hole by alice's socket, where it must be refused by its
// rule with nothing made; on the Engine's own, where it must be open; and by a proxy
// that monitors, which must record the refusal and let it through.
func TestEscapes(t *testing.T) {
	y := newYard(t)
	titles := make(map[string]bool)
	for _, h := range holes() {
		if titles[h.title()] {
			t.Errorf("%s stands twice", h.title())
		}
		titles[h.title()] = true
		t.Run(h.title(), func(t *testing.T) {
			y.t = t
			y.escape(&h)
		})
	}
	y.t = t
	y.recorded()
}

func (y *yard) escape(h *hole) {
	y.t.Helper()
	defer y.tidy()
	before := y.seen["lists"]
	if h.prepare != nil {
		h.prepare(y)
		before = y.lists()
	}
	got := y.try(h, theProxy.Socket(lab.Alice))
	if h.dropped {
		if got.status != http.StatusCreated || h.open(y, got) {
			y.t.Errorf("by the proxy it is not left out: %d %s", got.status, got.body)
		}
	} else {
		y.refused(h, got)
		if after := y.lists(); after != before {
			y.t.Errorf("by the proxy, something was made:\n%s\n%s", apart(before, after), apart(after, before))
		}
	}
	raw := y.try(h, theEngine.Socket)
	switch open := h.open(y, raw); {
	case !open && h.shut == "":
		y.t.Errorf("it is not open on the Engine itself: %d %.2000s", raw.status, raw.body)
	case open && h.shut != "":
		y.t.Errorf("it is open on the Engine itself, and is marked as shut (%s): %d %.2000s", h.shut, raw.status, raw.body)
	}
	if h.dropped {
		return
	}
	y.tidy()
	if h.prepare != nil {
		h.prepare(y)
	}
	if monitored := y.try(h, y.monitored.Socket(lab.Alice)); monitored.status != raw.status {
		y.t.Errorf("monitored: %d %s, and the Engine says %d", monitored.status, monitored.body, raw.status)
	}
	y.want = append(y.want, h.rule)
}

// refused wants a refusal that names the rule, the profile and nothing else.
func (y *yard) refused(h *hole, got answer) {
	y.t.Helper()
	says := h.says
	if says == "" {
		says = "is not allowed here (rule " + h.rule + ", profile confined)."
	}
	if got.status != http.StatusForbidden || !strings.Contains(got.body, says) {
		y.t.Errorf("by the proxy: %d %s, want 403 and %q", got.status, got.body, says)
	}
}

// recorded wants one record of each request to the proxy that monitors: of a refusal
// that was not made, by the rule.
func (y *yard) recorded() {
	y.t.Helper()
	var got []string
	eventually(y.t, "all requests are recorded", func() bool {
		text, err := y.monitored.Audit()
		if err != nil {
			y.t.Fatal(err)
		}
		got = nil
		for line := range strings.Lines(text) {
			var r record
			if err := json.Unmarshal([]byte(line), &r); err == nil && r.PID == os.Getpid() && r.Verdict == "would_deny" {
				got = append(got, r.Rule)
			}
		}
		return len(got) >= len(y.want)
	})
	if !slices.Equal(got, y.want) {
		y.t.Errorf("the records are of\n%v, want\n%v", got, y.want)
	}
}

// output starts, as the admin, what was made, waits for its end and returns what it
// printed.
func (y *yard) output(a answer) string {
	y.t.Helper()
	id := idIn(a)
	if a.status != http.StatusCreated {
		return ""
	}
	if got := y.raw("POST", "/containers/"+id+"/start", ""); got.status != http.StatusNoContent {
		return fmt.Sprintf("it does not start: %s", got.body)
	}
	y.raw("POST", "/containers/"+id+"/wait", "")
	return y.raw("GET", "/containers/"+id+"/logs?stdout=1&stderr=1", "").body
}

// prints wants a container that prints a text.
func prints(text string) func(*yard, answer) bool {
	return func(y *yard, a answer) bool {
		out := y.output(a)
		if !strings.Contains(out, y.words(text)) {
			y.t.Logf("it prints %q", out)
			return false
		}
		return true
	}
}

// shares wants a container that prints what a link of the test's own process says.
func shares(namespace string) func(*yard, answer) bool {
	return func(y *yard, a answer) bool {
		link, err := os.Readlink("/proc/self/ns/" + namespace)
		if err != nil {
			y.t.Fatal(err)
		}
		return prints(link)(y, a)
	}
}

// holds wants a container whose process has a capability.
func holds(bit uint) func(*yard, answer) bool {
	return func(y *yard, a answer) bool {
		out := y.output(a)
		found := regexp.MustCompile(`CapEff:\s+([0-9a-f]+)`).FindStringSubmatch(out)
		if found == nil {
			y.t.Logf("it prints %q", out)
			return false
		}
		caps, err := strconv.ParseUint(found[1], 16, 64)
		return err == nil && caps>>bit&1 == 1
	}
}

// has wants a container whose settings, as the Engine shows them, hold a text.
func has(text string) func(*yard, answer) bool {
	return func(y *yard, a answer) bool {
		if a.status != http.StatusCreated {
			return false
		}
		var all struct{ HostConfig json.RawMessage }
		shown := y.raw("GET", "/containers/"+idIn(a)+"/json", "")
		if err := json.Unmarshal([]byte(shown.body), &all); err != nil {
			y.t.Fatal(err)
		}
		if !strings.Contains(string(all.HostConfig), y.words(text)) {
			y.t.Logf("it is %s", all.HostConfig)
			return false
		}
		return true
	}
}

// arrives wants what a container prints to reach a socket of the test's own.
func arrives(network string) func(*yard, answer) bool {
	return func(y *yard, a answer) bool {
		if out := y.output(a); strings.Contains(out, "does not start") {
			y.t.Log(out)
			return false
		}
		c := y.logs[network]
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			y.t.Fatal(err)
		}
		text := make([]byte, 4096)
		n, _, err := c.ReadFrom(text)
		return err == nil && strings.Contains(string(text[:n]), secret)
	}
}

// taken wants the Engine to have taken a request.
func taken(_ *yard, a answer) bool { return a.status < 300 }
