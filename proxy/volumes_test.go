package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab/bodies"
	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/peercred"
)

// fakeVolumes are the volumes of a fake Engine, with their labels.
type fakeVolumes struct {
	mu     sync.Mutex
	labels map[string]map[string]string
}

// serve makes, shows and removes volumes as the Engine does.
func (v *fakeVolumes) serve(w http.ResponseWriter, r *http.Request) bool {
	_, target := splitVersion(r.URL.Path)
	name, ok := strings.CutPrefix(target, "/volumes/")
	if !ok {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case r.Method == del:
		delete(v.labels, name)
		w.WriteHeader(http.StatusNoContent)
		return true
	case name == "create":
		var req struct {
			Name   string
			Labels map[string]string
		}
		_ = json.NewDecoder(r.Body).Decode(&req)
		if name = req.Name; name == "" {
			name = id("a")
		}
		if _, there := v.labels[name]; !there {
			v.labels[name] = req.Labels
		}
		w.WriteHeader(http.StatusCreated)
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"Name": name, "Labels": v.labels[name]})
	return true
}

// confined are people whose containers are held to rules about the host.
type confined struct{ people }

func (c confined) ByUID(uid uint32) (policy.Subject, error) {
	s, err := c.people.ByUID(uid)
	s.Profile = &policy.Profile{Name: "confined"}
	return s, err
}

func (c confined) ByName(name string) (policy.Subject, error) {
	s, err := c.people.ByName(name)
	s.Profile = &policy.Profile{Name: "confined"}
	return s, err
}

// newVolumeBed is a bed whose Engine has volumes: those of alice's that are named.
func newVolumeBed(t *testing.T, d Directory, names ...string) *bed {
	t.Helper()
	b := newBed(t, func(o *Options) { o.Directory = d })
	b.engine.volumes = &fakeVolumes{labels: make(map[string]map[string]string)}
	for _, name := range names {
		b.engine.volumes.labels[name] = map[string]string{"ds01.user": "alice"}
	}
	return b
}

// mounting is a create request with binds.
func mounting(binds ...string) string {
	text, err := json.Marshal(binds)
	if err != nil {
		panic(err)
	}
	return `{"Image":"i","HostConfig":{"Binds":` + string(text) + `}}`
}

// arrivedBinds are the binds of the one create that arrived.
func arrivedBinds(t *testing.T, b *bed) []string {
	t.Helper()
	a := b.engine.take()
	if len(a) != 1 || path.Base(a[0].Target) != "create" {
		t.Fatalf("%d requests arrived: %v", len(a), a)
	}
	got, err := bodies.Read(a[0].Body)
	if err != nil {
		t.Fatal(err)
	}
	return got.Host.Binds
}

// TestOnlyTheFirstContainerFills follows volumes through what makes and uses them.
func TestOnlyTheFirstContainerFills(t *testing.T) {
	b := newVolumeBed(t, confined{}, "old")
	anonymous := id("a")
	for n, step := range []struct{ method, target, body, want string }{
		{post, "/volumes/create", `{"Name":"made"}`, ""},
		{post, "/containers/create", mounting("made:/d"), "made:/d"},
		{post, "/containers/create", mounting("made:/d"), "made:/d:nocopy"},
		// To make it again makes nothing.
		{post, "/volumes/create", `{"Name":"made"}`, ""},
		{post, "/containers/create", mounting("made:/d:ro"), "made:/d:ro,nocopy"},
		// What was removed is another one.
		{del, "/volumes/made", "", ""},
		{post, "/volumes/create", `{"Name":"made"}`, ""},
		{post, "/containers/create", mounting("made:/d:ro"), "made:/d:ro"},
		{post, "/containers/create", mounting("new:/d", "old:/e"), "new:/d old:/e:nocopy"},
		{post, "/containers/create", mounting("new:/d", "old:/e"), "new:/d:nocopy old:/e:nocopy"},
		// A mark of the client's says nothing.
		{post, "/volumes/create", `{"Name":"old","Labels":{"ds01.volume_mark":""}}`, ""},
		{post, "/containers/create", mounting("old:/e"), "old:/e:nocopy"},
		// A container's refusal leaves its volume as it was.
		{post, "/containers/create", mounting("kept:/d", "/etc:/e"), ""},
		{post, "/containers/create", mounting("kept:/d"), "kept:/d"},
		{post, "/volumes/create", `{}`, ""},
		{post, "/containers/create", mounting(anonymous + ":/d"), anonymous + ":/d"},
		{post, "/containers/create", mounting(anonymous + ":/d"), anonymous + ":/d:nocopy"},
		// What the Engine mounts from elsewhere is not filled.
		{post, "/volumes/create", `{"Name":"opts","DriverOpts":{"device":"/home"}}`, ""},
		{post, "/containers/create", mounting("twice:/a", "twice:/b"), "twice:/a twice:/b"},
	} {
		b.engine.take()
		got := b.do(t, step.method, step.target, step.body)
		if step.want == "" {
			continue
		}
		if binds := strings.Join(arrivedBinds(t, b), " "); binds != step.want {
			t.Errorf("step %d, %s: %d %s arrived as %s", n, step.body, got.status, got.message(), binds)
		}
	}
}

// TestOtherModesFillAsTheEngineDoes wants binds as they were asked for.
func TestOtherModesFillAsTheEngineDoes(t *testing.T) {
	for name, d := range map[string]Directory{"open": people{}, "monitoring": confined{people{mode: policy.ModeMonitoring}}} {
		b := newVolumeBed(t, d, "old")
		for range 2 {
			b.do(t, post, "/containers/create", mounting("old:/d", "new:/e"))
			if got := arrivedBinds(t, b); !slices.Equal(got, []string{"old:/d", "new:/e"}) {
				t.Errorf("%s: arrived as %v", name, got)
			}
		}
	}
}

// A filling is a create that the fake Engine is about.
type filling struct {
	b       *bed
	started chan struct{}
	done    chan struct{}
}

// newFilling has the fake Engine take its time over every create that says slow.
func newFilling(b *bed) *filling {
	f := &filling{b: b, started: make(chan struct{}, 8), done: make(chan struct{})}
	b.engine.answer(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("name") == "slow" {
			f.started <- struct{}{}
			<-f.done
		}
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"Id":"`+id("c")+`"}`)
	})
	return f
}

// send sends a request and leaves it to itself.
func (f *filling) send(t *testing.T, who, method, target, body string) net.Conn {
	t.Helper()
	c := f.b.dial(t, who)
	if _, err := fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: docker\r\nContent-Length: %d\r\n\r\n%s", method, target, len(body), body); err != nil {
		t.Fatal(err)
	}
	return c
}

// waits wants no answer for a while.
func waits(t *testing.T, what string, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	var timeout net.Error
	if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%s did not wait: %v", what, err)
	}
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
}

// TestNobodyHasAVolumeThatIsBeingFilled tries to get at one in every way, while the
// client that began it stays, and after it has left.
func TestNobodyHasAVolumeThatIsBeingFilled(t *testing.T) {
	for _, leaves := range []bool{false, true} {
		b := newVolumeBed(t, confined{}, "old", id("f"))
		f := newFilling(b)
		first := f.send(t, "alice", post, "/containers/create?name=slow", mounting("new:/d", "/anonymous"))
		<-f.started
		if leaves {
			first.Close()
			time.Sleep(50 * time.Millisecond)
		}
		waiting := make(map[string]net.Conn)
		for what, r := range map[string][3]string{
			"a bind":              {post, "/containers/create", mounting("new:/d:nocopy")},
			"a mount":             {post, "/containers/create", `{"Image":"i","HostConfig":{"Mounts":[{"Type":"volume","Source":"new","Target":"/d"}]}}`},
			"an anonymous volume": {post, "/containers/create", mounting(id("f") + ":/d")},
			"removal":             {del, "/volumes/new", ""},
			"prune":               {post, "/volumes/prune", ""},
		} {
			waiting[what] = f.send(t, "alice", r[0], r[1], r[2])
		}
		for what, c := range waiting {
			waits(t, what, c)
		}
		b.records.mu.Lock()
		b.records.list = nil
		b.records.mu.Unlock()
		gone := f.send(t, "alice", post, "/containers/create", mounting("new:/d"))
		waits(t, "one that leaves", gone)
		gone.Close()
		if rec := b.records.last(t); rec.Route != "/containers/create" {
			t.Errorf("the record is about %s", rec.Route)
		}
		// Nothing else waits.
		if got := b.do(t, post, "/containers/create", mounting("old:/d", "other:/e")); got.status != http.StatusCreated {
			t.Errorf("another volume: %d %s", got.status, got.message())
		}
		b.peers.set(peercred.Peer{UID: 1002, PID: 7}, nil)
		bobs := f.send(t, "", post, "/containers/create", mounting(id("b")+":/d"))
		if _, err := bobs.Read(make([]byte, 1)); err != nil {
			t.Errorf("somebody else waits: %v", err)
		}
		b.peers.set(peercred.Peer{UID: 1001, PID: 7}, nil)
		for what, c := range waiting {
			waits(t, what, c)
		}
		b.engine.take()
		close(f.done)
		for what, c := range waiting {
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Errorf("%s gets no answer: %v", what, err)
			}
		}
		for _, a := range b.engine.take() {
			if strings.Contains(a.Body, `"new`) && !strings.Contains(a.Body, ":nocopy") && !strings.Contains(a.Body, `"NoCopy":true`) {
				t.Errorf("%s arrived", a.Body)
			}
		}
	}
}
