package proxy

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"

	"github.com/ds01/ds01-proxy/cgroupstat"
	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/audit"
	"github.com/ds01/ds01-proxy/proxy/peercred"
	"github.com/ds01/ds01-proxy/proxy/quota"
)

const gib = int64(1) << 30

func some[T any](v T) *T { return &v }

// testLimits are those of the tests of gates.
func testLimits() policy.Limits {
	return policy.Limits{
		PerContainer:  policy.ContainerLimits{Memory: some(4 * gib), MemorySwap: some(5 * gib), ShmSize: some(gib), NanoCPUs: some(int64(2e9)), PIDs: some(int64(100))},
		MaxContainers: some(5), MaxGPUSlots: some(1),
		Aggregate: &policy.Aggregate{MemoryMax: some(8 * gib), TasksMax: some(int64(1000)), GPUs: some(1.0)},
	}
}

// limitedBed is a bed with limits, whose containers have 1 GiB and have settled.
func limitedBed(t *testing.T, options ...bedOption) *bed {
	t.Helper()
	b := newBed(t, options...)
	b.quota.limits = testLimits()
	b.holds(quota.Container{ID: aliceID, User: "alice", Memory: gib, Running: true})
	b.holds(quota.Container{ID: infraID, User: "alice", Memory: gib, Running: true})
	b.engine.answer(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/create") {
			w.WriteHeader(http.StatusCreated)
			_, _ = fmt.Fprintf(w, `{"Id":%q,"Warnings":["the Engine's own"]}`, id("c"))
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	return b
}

// holds tells the book of a container.
func (b *bed) holds(c quota.Container) { b.quota.Book.Set(c, b.quota.Book.Version(c.ID)) }

// uses sets what alice's slice uses.
func (b *bed) uses(u cgroupstat.Usage) {
	b.quota.mu.Lock()
	b.quota.used = u
	b.quota.mu.Unlock()
}

// report is the answer to GET target on who's socket.
func (b *bed) report(t *testing.T, who, target string) (Report, reply) {
	t.Helper()
	c := b.dial(t, who)
	defer c.Close()
	text := "GET " + target + " HTTP/1.1\r\nHost: d\r\n\r\n"
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	got := readReply(t, bufio.NewReader(c), text)
	var r Report
	if got.status == http.StatusOK {
		if err := json.Unmarshal([]byte(got.body), &r); err != nil {
			t.Fatalf("%v: %s", err, got.body)
		}
	}
	return r, got
}

// pending waits until as much is promised to alice.
func (b *bed) pending(t *testing.T, want int64) {
	t.Helper()
	var r Report
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until); time.Sleep(time.Millisecond) {
		if r, _ = b.report(t, "alice", "/_ds01/limits"); r.Memory.Pending == want {
			return
		}
	}
	t.Errorf("%d are promised, want %d", r.Memory.Pending, want)
}

// TestRefusedCreatesNeverArrive asks for what is over each limit.
func TestRefusedCreatesNeverArrive(t *testing.T) {
	b := limitedBed(t)
	for _, c := range []struct{ host, rule string }{
		{`{"Memory":5368709120}`, "container-limits"},
		{`{"Memory":-1}`, "container-limits"},
		{`{"MemorySwap":-1}`, "container-limits"},
		{`{"Memory":1073741824,"MemorySwap":9999999999}`, "container-limits"},
		{`{"NanoCpus":2000000001}`, "container-limits"},
		{`{"NanoCpus":1}`, "container-limits"},
		{`{"CpuQuota":-1}`, "container-limits"},
		{`{"CpuPeriod":1000,"CpuQuota":2001}`, "container-limits"},
		{`{"PidsLimit":-1}`, "container-limits"},
		{`{"ShmSize":1073741825}`, "container-limits"},
		{`{"Tmpfs":{"/t":"size=1k,size=5g"}}`, "container-limits"},
		{`{"Mounts":[{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"SizeBytes":5368709120}}]}`, "container-limits"},
		{`{"DeviceRequests":[{"DeviceIDs":["0,1"],"Capabilities":[["gpu"]]}]}`, "gpu-quota"},
		{`{"DeviceRequests":[{"Count":-1,"Capabilities":[["gpu"]]}]}`, "gpu-quota"},
	} {
		got := b.do(t, post, "/containers/create", `{"Image":"i","HostConfig":`+c.host+`}`)
		rec := b.records.last(t)
		if got.status != http.StatusForbidden || rec.Rule != c.rule || !strings.Contains(got.message(), c.rule) {
			t.Errorf("%s: %d %s, rule %s", c.host, got.status, got.message(), rec.Rule)
		}
	}
	b.uses(cgroupstat.Usage{Memory: 6 * gib, Cache: gib, Exists: true})
	got := b.do(t, post, "/containers/create", `{"Image":"i"}`)
	for _, text := range []string{"5g (with page cache 6g)", "Requested: 4g", "Limit: 8g", "docker stop", "docker ps", "check-limits"} {
		if got.status != http.StatusForbidden || !strings.Contains(got.message(), text) {
			t.Errorf("over the memory of all: %d %s", got.status, got.message())
		}
	}
	if a := b.engine.take(); len(a) != 0 {
		t.Errorf("%d arrived", len(a))
	}
	b.pending(t, 0)
}

// TestDefaultsArrive: what a request leaves out is what arrives of the limits.
func TestDefaultsArrive(t *testing.T) {
	b := limitedBed(t)
	if got := b.do(t, post, "/containers/create", `{"Image":"i","HostConfig":{"Memory":3221225472,"Tmpfs":{"/t":"mode=755"}}}`); got.status != http.StatusCreated {
		t.Fatalf("%d %s", got.status, got.message())
	}
	var req container.CreateRequest
	if err := json.Unmarshal([]byte(b.engine.take()[0].Body), &req); err != nil {
		t.Fatal(err)
	}
	hc := req.HostConfig
	if hc.Memory != 3*gib || hc.MemorySwap != 4*gib || hc.ShmSize != gib || hc.NanoCPUs != 2e9 || *hc.PidsLimit != 100 || hc.Tmpfs["/t"] != fmt.Sprint("mode=755,size=", 3*gib) {
		t.Errorf("%+v", hc)
	}
	// What is made and not started counts.
	b.pending(t, 3*gib)
	if c, known := b.quota.Book.Container(id("c")); !known || !c.Fresh || c.Memory != 3*gib {
		t.Errorf("the book has %+v", c)
	}
}

// TestACreateThatTheEngineRefusesLeavesNothing.
func TestACreateThatTheEngineRefusesLeavesNothing(t *testing.T) {
	b := limitedBed(t)
	b.engine.answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusConflict) })
	b.do(t, post, "/containers/create", `{"Image":"i"}`)
	b.pending(t, 0)
	b.engine.answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	for _, target := range []string{"/containers/create", "/containers/alices/update", "/containers/alices/restart", "/build"} {
		body := ""
		switch {
		case strings.HasSuffix(target, "create"):
			body = `{"Image":"i"}`
		case strings.HasSuffix(target, "update"):
			body = `{"Memory":4294967296}`
		}
		b.do(t, post, target, body)
	}
	b.pending(t, 0)
	if c, _ := b.quota.Book.Container(aliceID); c.Memory != gib {
		t.Errorf("the book has %+v", c)
	}
}

// TestAPromiseOutlivesItsClient: the Engine makes the container all the same.
func TestAPromiseOutlivesItsClient(t *testing.T) {
	b := limitedBed(t)
	released := make(chan struct{})
	b.engine.answer(func(w http.ResponseWriter, _ *http.Request) {
		<-released
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"Id":"`+id("c")+`"}`)
	})
	c := b.dial(t, "alice")
	if _, err := io.WriteString(c, createText(`{"Image":"i"}`)); err != nil {
		t.Fatal(err)
	}
	for len(b.engine.take()) == 0 {
		time.Sleep(time.Millisecond)
	}
	c.Close()
	time.Sleep(50 * time.Millisecond)
	if r, _ := b.report(t, "alice", "/_ds01/limits"); r.Memory.Pending != 4*gib {
		t.Errorf("%d are promised", r.Memory.Pending)
	}
	b.engine.answer(nil)
	close(released)
	eventually(t, func() bool {
		made, known := b.quota.Book.Container(id("c"))
		return known && made.Memory == 4*gib
	})
}

// TestUpdatesAreRebuilt: what arrives is what was decided on.
func TestUpdatesAreRebuilt(t *testing.T) {
	b := limitedBed(t)
	for _, c := range []struct{ body, want string }{
		{`{"Memory":2147483648}`, `"Memory":2147483648 "MemorySwap":3221225472`},
		{`{"memory":2147483648}`, `"Memory":2147483648`},
		{`{"CpuQuota":50000}`, `"CpuPeriod":100000 "CpuQuota":50000`},
		{`{"PidsLimit":0}`, `"PidsLimit":null`},
		{`{"RestartPolicy":{"Name":"always"}}`, `"Name":"always"`},
	} {
		got := b.do(t, post, "/containers/alices/update", c.body)
		a := b.engine.take()
		if got.status >= 400 || len(a) != 1 {
			t.Errorf("%s: %d %s; %d arrived", c.body, got.status, got.message(), len(a))
			continue
		}
		for want := range strings.FieldsSeq(c.want) {
			if !strings.Contains(a[0].Body, want) {
				t.Errorf("%s arrived as %s", c.body, a[0].Body)
			}
		}
	}
	if c, _ := b.quota.Book.Container(aliceID); c.Memory != 2*gib || !c.Restarts {
		t.Errorf("the book has %+v", c)
	}
	for _, body := range []string{`{"Memory":5368709120}`, `{"Memory":-1}`, `{"MemorySwap":-1}`, `{"PidsLimit":-1}`, `{"NanoCpus":3000000000}`, `{"CpuPeriod":1000}`, `{"CpuQuota":-1}`} {
		if got := b.do(t, post, "/containers/alices/update", body); got.status != http.StatusForbidden {
			t.Errorf("%s: %d", body, got.status)
		}
	}
	// Two GiB more than it has are one too many.
	b.uses(cgroupstat.Usage{Memory: 7 * gib, Exists: true})
	if got := b.do(t, post, "/containers/alices/update", `{"Memory":4294967296}`); got.status != http.StatusForbidden || !strings.Contains(got.message(), "Requested: 2g") {
		t.Errorf("more than all may have: %d %s", got.status, got.message())
	}
	if a := b.engine.take(); len(a) != 0 {
		t.Errorf("%d arrived", len(a))
	}
}

// TestBuildsGetTheLimits looks at the query that arrives.
func TestBuildsGetTheLimits(t *testing.T) {
	b := limitedBed(t)
	for _, c := range []struct{ query, want string }{
		{"", "memory=4294967296 memswap=5368709120 cpuperiod=100000 cpuquota=200000 shmsize=1073741824"},
		{"?memory=1073741824&shmsize=1024", "memory=1073741824 memswap=2147483648 cpuperiod=100000 cpuquota=200000 shmsize=1024"},
		{"?memory=1073741824&memory=99999999999&cpuperiod=10000", "memory=1073741824 memswap=2147483648 cpuperiod=10000 cpuquota=20000 shmsize=1073741824"},
		{"?memory=much&cpuquota=100000", "memory=4294967296 memswap=5368709120 cpuperiod= cpuquota=100000 shmsize=1073741824"},
	} {
		got := b.raw(t, "POST /build"+c.query+" HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n")
		a := b.engine.take()
		if got.status >= 400 || len(a) != 1 {
			t.Errorf("%q: %d %s", c.query, got.status, got.message())
			continue
		}
		u, err := url.Parse(a[0].Target)
		if err != nil {
			t.Fatal(err)
		}
		for want := range strings.FieldsSeq(c.want) {
			key, value, _ := strings.Cut(want, "=")
			if have := u.Query()[key]; strings.Join(have, ",") != value {
				t.Errorf("%q: %s is %v, want %s", c.query, key, have, value)
			}
		}
	}
	for _, query := range []string{"?memory=9999999999", "?memory=-1", "?memswap=-1", "?cpuquota=-1", "?cpuquota=200001", "?shmsize=9999999999"} {
		if got := b.raw(t, "POST /build"+query+" HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n"); got.status != http.StatusForbidden {
			t.Errorf("%q: %d", query, got.status)
		}
	}
	if a := b.engine.take(); len(a) != 0 {
		t.Errorf("%d arrived", len(a))
	}
}

// TestStartsAreHeldAgainstTheLimits, and those of restart and unpause.
func TestStartsAreHeldAgainstTheLimits(t *testing.T) {
	b := limitedBed(t)
	for _, c := range []struct {
		act     string
		running bool
		used    int64
		status  int
	}{
		{"start", false, 7, 204}, {"start", false, 8, 403}, {"restart", false, 8, 403}, {"restart", true, 7, 204}, {"unpause", true, 8, 204}, {"unpause", true, 9, 403},
	} {
		b.holds(quota.Container{ID: aliceID, User: "alice", Memory: gib, Running: c.running})
		b.uses(cgroupstat.Usage{Memory: c.used * gib, Exists: true})
		got := b.do(t, post, "/containers/alices/"+c.act, "")
		arrived := len(b.engine.take())
		if got.status != c.status || arrived != 0 != (c.status == 204) {
			t.Errorf("%s with %d used: %d %s; %d arrived", c.act, c.used, got.status, got.message(), arrived)
		}
		if is, _ := b.quota.Book.Container(aliceID); c.act == "start" && is.Running != (c.status == 204) {
			t.Errorf("%s: the book has %+v", c.act, is)
		}
	}
	b.uses(cgroupstat.Usage{})
	b.holds(quota.Container{ID: aliceID, User: "alice", Memory: gib})
	b.pending(t, 0)
}

// TestMonitoringOnlyTells: requests arrive as they are, and what would have become of
// them is recorded.
func TestMonitoringOnlyTells(t *testing.T) {
	b := limitedBed(t, withMode(policy.ModeMonitoring))
	b.uses(cgroupstat.Usage{Memory: 8 * gib, Exists: true})
	b.holds(quota.Container{ID: aliceID, User: "alice", Memory: gib})
	for _, c := range []struct{ target, body, rule string }{
		{"/containers/create", `{"Image":"i","HostConfig":{"Memory":99999999999}}`, "container-limits"},
		{"/containers/create", `{"Image":"i"}`, "memory-quota"},
		{"/containers/alices/start", "", "memory-quota"},
		{"/containers/alices/update", `{"Memory":-1}`, "container-limits"},
	} {
		got := b.do(t, post, c.target, c.body)
		rec := b.records.last(t)
		a := b.engine.take()
		if got.status >= 400 || rec.Verdict != audit.VerdictWouldDeny || rec.Rule != c.rule || len(a) != 1 {
			t.Errorf("%s %s: %d, %s by %s, %d arrived", c.target, c.body, got.status, rec.Verdict, rec.Rule, len(a))
			continue
		}
		if strings.HasSuffix(c.target, "update") && a[0].Body != c.body || strings.Contains(a[0].Body, `"Memory":4294967296`) {
			t.Errorf("%s arrived as %s", c.body, a[0].Body)
		}
	}
}

// TestTheWarningAboutProcesses goes into the answer, beside the Engine's own.
func TestTheWarningAboutProcesses(t *testing.T) {
	b := limitedBed(t)
	for pids, want := range map[int64]int{899: 1, 900: 2} {
		b.uses(cgroupstat.Usage{PIDs: pids, Exists: true})
		var made container.CreateResponse
		got := b.do(t, post, "/containers/create", `{"Image":"i","HostConfig":{"Memory":10485760}}`)
		if err := json.Unmarshal([]byte(got.body), &made); err != nil || len(made.Warnings) != want || made.ID != id("c") {
			t.Errorf("%d processes: %s, %v", pids, got.body, err)
		}
	}
}

func TestGatesThatCannotTell(t *testing.T) {
	b := limitedBed(t)
	b.quota.Reader = failing{}
	got := b.do(t, post, "/containers/create", `{"Image":"i"}`)
	if rec := b.records.last(t); got.status != http.StatusCreated || rec.FailOpen != "cgroup-unreadable" {
		t.Errorf("%d, cause %q", got.status, rec.FailOpen)
	}
	b.quota.OnError = policy.SwitchDeny
	if got := b.do(t, post, "/containers/create", `{"Image":"i"}`); got.status != http.StatusForbidden {
		t.Errorf("%d", got.status)
	}
}

type failing struct{}

func (failing) Read(string) (cgroupstat.Usage, error) {
	return cgroupstat.Usage{}, errors.New("input/output error")
}

// TestLimitsAreShown to their user, and to admins, in every mode.
func TestLimitsAreShown(t *testing.T) {
	for _, mode := range []policy.Mode{policy.ModeFull, policy.ModeMonitoring, policy.ModeDisabled} {
		b := limitedBed(t, withMode(mode))
		b.uses(cgroupstat.Usage{Memory: 3 * gib, Cache: gib, PIDs: 7, Exists: true})
		for _, c := range []struct {
			who, target string
			status      int
			user        string
		}{
			{"alice", "/_ds01/limits", 200, "alice"}, {"alice", "/v1.41/_ds01/limits", 200, "alice"}, {"alice", "/_ds01/limits?user=alice", 200, "alice"},
			{"alice", "/_ds01/limits?user=bob", 403, ""}, {"alice", "/_ds01/limits?user=nosuch", 403, ""},
			{"admin", "/_ds01/limits?user=alice", 200, "alice"}, {"admin", "/v1.41/_ds01/limits?user=alice", 200, "alice"}, {"admin", "/_ds01/limits", 200, "admin"},
			{"admin", "/_ds01/limits?user=nosuch", 404, ""},
		} {
			b.peers.set(peercred.Peer{UID: map[string]uint32{"alice": 1001, "admin": 1003}[c.who], PID: 7}, nil)
			r, got := b.report(t, c.who, c.target)
			if got.status != c.status || r.User != c.user {
				t.Errorf("%v: %s asks for %s: %d %s", mode, c.who, c.target, got.status, got.body)
			}
			if c.user == "alice" && (r.Memory.Used != 2*gib || r.Memory.Current != 3*gib || *r.Memory.Limit != 8*gib || r.Containers.All != 2 || *r.PIDs.Used != 7 || *r.Each.CPUs != 2) {
				t.Errorf("%v: %s", mode, got.body)
			}
		}
		if a := b.engine.take(); len(a) != 0 {
			t.Errorf("%v: %d arrived", mode, len(a))
		}
	}
	b := limitedBed(t)
	b.do(t, post, "/containers/create", `{"Image":"i","HostConfig":{"DeviceRequests":[{"Count":2,"Capabilities":[["gpu"]]}]}}`)
	if r, _ := b.report(t, "alice", "/_ds01/limits"); r.Refused == nil || !strings.Contains(r.Refused.Reason, "gpu-quota") {
		t.Errorf("the last refusal is %+v", r.Refused)
	}
}

// TestAStartOutlivesItsClient: what was promised to a start stands until the Engine has
// answered, however long that takes and whoever waits for it.
func TestAStartOutlivesItsClient(t *testing.T) {
	b := limitedBed(t)
	b.quota.Book.Set(quota.Container{ID: aliceID, User: "alice", Memory: 2 * gib}, b.quota.Book.Version(aliceID))
	released := make(chan struct{})
	b.engine.answer(func(w http.ResponseWriter, _ *http.Request) {
		<-released
		w.WriteHeader(http.StatusNoContent)
	})
	c := b.dial(t, "alice")
	if _, err := io.WriteString(c, "POST /containers/alices/start HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	for len(b.engine.take()) == 0 {
		time.Sleep(time.Millisecond)
	}
	c.Close()
	time.Sleep(100 * time.Millisecond)
	b.records.mu.Lock()
	over := len(b.records.list)
	b.records.mu.Unlock()
	if over > 0 {
		t.Error("the request is over before the Engine has answered")
	}
	close(released)
	eventually(t, func() bool {
		started, _ := b.quota.Book.Container(aliceID)
		return started.Running
	})
}
