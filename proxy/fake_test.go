package proxy

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/ds01/ds01-proxy/cgroupstat"
	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/audit"
	"github.com/ds01/ds01-proxy/proxy/binds"
	"github.com/ds01/ds01-proxy/proxy/engine"
	"github.com/ds01/ds01-proxy/proxy/images"
	"github.com/ds01/ds01-proxy/proxy/layers"
	"github.com/ds01/ds01-proxy/proxy/peercred"
	"github.com/ds01/ds01-proxy/proxy/quota"
)

// IDs of the containers that the fake Engine has, and of their execs.
var (
	aliceID  = id("a11ce")
	bobID    = id("b0b")
	nobodyID = id("0")
	infraID  = id("1f5a")

	aliceExec = id("ea")
	bobExec   = id("eb")
)

// openSwitches fail open wherever that is the default.
var openSwitches = Switches{
	UnownedContainers: policy.SwitchAllow, UnownedResources: policy.SwitchAllow, UnknownRoutes: policy.SwitchAllow, BuildKit: policy.SwitchAllow, ContainerRoot: policy.SwitchAllow, HostLinks: policy.SwitchAllow,
}

// testTime is a time for tests.
var testTime = time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)

func id(prefix string) string { return prefix + strings.Repeat("0", 64-len(prefix)-1) + "1" }

// An arrival is a request as the fake Engine received it.
type arrival struct {
	Method string
	Target string
	Header http.Header
	Body   string
}

// fakeEngine records what arrives. It answers like an Engine where the proxy
// itself asks, and the rest by its handler.
type fakeEngine struct {
	socket string

	mu       sync.Mutex
	arrivals []arrival
	handler  http.HandlerFunc
	version  string
	driver   string
	// tags are the names of the image that it has.
	tags []string
	// volumes, where set, answers about volumes.
	volumes *fakeVolumes
}

// engineConn is the key of the connection that a request came over.
type engineConn struct{}

// fakeContainers is what the fake Engine lists.
func fakeContainers() []map[string]any {
	one := func(id, name string, labels map[string]string) map[string]any {
		return map[string]any{"Id": id, "Names": []string{"/" + name}, "Labels": labels}
	}
	return []map[string]any{
		one(aliceID, "alices", map[string]string{"ds01.user": "alice"}),
		one(bobID, "bobs", map[string]string{"ds01.user": "bob"}),
		one(nobodyID, "nobodys", nil),
		one(infraID, "infra", map[string]string{"ds01.user": "alice", "ds01.protected": "true"}),
	}
}

func newFakeEngine(t *testing.T) *fakeEngine {
	t.Helper()
	f := &fakeEngine{socket: filepath.Join(t.TempDir(), "e.sock"), version: "1.41", driver: "cgroupfs", tags: []string{"taken:1"}}
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: f, ConnContext: func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, engineConn{}, c)
	}}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return f
}

func (f *fakeEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	reply := func(v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	// The proxy's own questions name no version; what it forwards always does.
	switch r.Header.Get("User-Agent") + " " + r.URL.Path {
	case "Go-http-client/1.1 /version":
		reply(map[string]string{"Version": "fake", "ApiVersion": f.version, "MinAPIVersion": "1.12"})
		return
	case "Go-http-client/1.1 /info":
		reply(map[string]string{"CgroupDriver": f.driver, "Driver": "overlay2"})
		return
	case "Go-http-client/1.1 /containers/json":
		if strings.Contains(r.URL.Query().Get("filters"), "ancestor") {
			reply([]string{})
			return
		}
		reply(fakeContainers())
		return
	case "Go-http-client/1.1 /events":
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return
	case "Go-http-client/1.1 /exec/" + aliceExec + "/json":
		reply(map[string]string{"ContainerID": aliceID})
		return
	case "Go-http-client/1.1 /exec/" + bobExec + "/json":
		reply(map[string]string{"ContainerID": bobID})
		return
	}
	if r.Header.Get("User-Agent") == "Go-http-client/1.1" {
		for _, c := range fakeContainers() {
			names, _ := c["Names"].([]string)
			if r.URL.Path == "/containers"+names[0]+"/json" || r.URL.Path == fmt.Sprint("/containers/", c["Id"], "/json") {
				reply(map[string]any{"Id": c["Id"], "Name": names[0], "Config": map[string]any{"Labels": c["Labels"]}, "State": map[string]int{"Pid": 7}})
				return
			}
		}
	}
	if r.Header.Get("User-Agent") == "Go-http-client/1.1" && r.URL.Path == "/images/json" {
		reply([]map[string]any{{"Id": "sha256:" + id("1ba6e"), "RepoTags": f.named()}})
		return
	}
	if r.Header.Get("User-Agent") == "Go-http-client/1.1" && strings.HasPrefix(r.URL.Path, "/images/") {
		reply(map[string]any{"Config": map[string]any{"Volumes": map[string]any{"/declared": struct{}{}}}})
		return
	}
	if r.Header.Get("User-Agent") == "Go-http-client/1.1" && r.URL.Path == "/networks" {
		reply([]map[string]any{{"Id": id("4e"), "Name": "n", "Labels": map[string]string{"ds01.user": "alice"}}})
		return
	}
	if f.volumes != nil && f.volumes.serve(w, r) {
		return
	}
	if r.Header.Get("User-Agent") == "Go-http-client/1.1" {
		w.WriteHeader(http.StatusNotFound)
		reply(map[string]string{"message": "No such container: " + r.URL.Path})
		return
	}
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	f.arrivals = append(f.arrivals, arrival{r.Method, r.RequestURI, r.Header, string(body)})
	handler := f.handler
	f.mu.Unlock()
	if handler != nil {
		handler(w, r)
		return
	}
	reply(map[string]string{"Id": id("c")})
}

// named returns the names of the image, and adds more.
func (f *fakeEngine) named(more ...string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tags = append(f.tags[:len(f.tags):len(f.tags)], more...)
	return f.tags
}

// take returns what arrived since the last take.
func (f *fakeEngine) take() []arrival {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.arrivals
	f.arrivals = nil
	return out
}

func (f *fakeEngine) answer(h http.HandlerFunc) {
	f.mu.Lock()
	f.handler = h
	f.mu.Unlock()
}

// records keeps audit records.
type records struct {
	mu     sync.Mutex
	list   []audit.Record
	panics int
}

func (r *records) Record(rec *audit.Record) {
	r.mu.Lock()
	r.list = append(r.list, *rec)
	r.mu.Unlock()
}

func (r *records) Panic(string, any, []byte) {
	r.mu.Lock()
	r.panics++
	r.mu.Unlock()
}

// last waits for the record of the request that was just answered.
func (r *records) last(t *testing.T) audit.Record {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		r.mu.Lock()
		if n := len(r.list); n > 0 {
			rec := r.list[n-1]
			r.list = nil
			r.mu.Unlock()
			return rec
		}
		r.mu.Unlock()
		if time.Now().After(deadline) {
			t.Fatal("no audit record")
		}
		time.Sleep(time.Millisecond)
	}
}

// people is a Directory of alice (1001), bob (1002) and the admin (1003).
type people struct{ mode policy.Mode }

func (p people) ByUID(uid uint32) (policy.Subject, error) {
	name, ok := map[uint32]string{1001: "alice", 1002: "bob", 1003: "admin"}[uid]
	if !ok {
		return policy.Subject{}, fmt.Errorf("uid %d is not served here", uid)
	}
	return policy.Subject{User: name, UID: uid, Group: "student", Slice: name, Admin: name == "admin", Mode: p.mode, Profile: &policy.Profile{Name: "open", OwnershipOnly: true}}, nil
}

func (p people) ByName(name string) (policy.Subject, error) {
	uid, ok := map[string]uint32{"alice": 1001, "bob": 1002, "admin": 1003}[name]
	if !ok {
		return policy.Subject{}, fmt.Errorf("user %q is not served here", name)
	}
	return p.ByUID(uid)
}

// peers lets a test say who connects.
type peers struct {
	mu   sync.Mutex
	peer peercred.Peer
	err  error
	// elsewhere makes every claim to be in a container a lie.
	elsewhere bool
}

func (p *peers) Within(peercred.Peer, int) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.elsewhere, nil
}

// FirstProcess is the same for every container.
func (p *peers) FirstProcess(context.Context, string) (int, error) { return 7, nil }

// Destinations is what every container has mounted.
func (p *peers) Destinations(context.Context, string) ([]string, error) {
	return []string{"/inherited"}, nil
}

// Groups are none.
func (p *peers) Groups(*net.UnixConn) ([]uint32, error) { return nil, nil }

func (p *peers) Read(*net.UnixConn, time.Duration) (peercred.Peer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.peer, p.err
}

func (p *peers) set(peer peercred.Peer, err error) {
	p.mu.Lock()
	p.peer, p.err = peer, err
	p.mu.Unlock()
}

// A bed is a proxy before a fake Engine.
type bed struct {
	engine  *fakeEngine
	server  *Server
	index   *engine.Index
	records *records
	peers   *peers
	quota   *quotas
	dir     string
}

// quotas keep the book of a bed, with limits that a test sets.
type quotas struct {
	*quota.Keeper
	mu     sync.Mutex
	limits policy.Limits
	used   cgroupstat.Usage
}

func newQuotas() *quotas {
	q := &quotas{}
	book := quota.NewBook(time.Now)
	for _, c := range fakeContainers() {
		labels, _ := c["Labels"].(map[string]string)
		id, _ := c["Id"].(string)
		book.Set(quota.Container{ID: id, User: labels["ds01.user"], Running: true}, 0)
	}
	book.Synced()
	q.Keeper = &quota.Keeper{
		Book: book, Reader: q, LimitsOf: q.Of, Now: time.Now, OnError: policy.SwitchAllow,
		SliceOf: func(s *policy.Subject) string { return "/" + s.Slice }, ScopeOf: func(s *policy.Subject, id string) string { return "/" + s.Slice + "/" + id },
	}
	return q
}

func (q *quotas) Of(string, string) policy.Limits {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.limits
}

func (q *quotas) Read(path string) (cgroupstat.Usage, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if strings.Count(path, "/") > 1 {
		return cgroupstat.Usage{}, nil
	}
	return q.used, nil
}

func (q *quotas) Ensure(context.Context, *policy.Subject, *policy.Aggregate) error { return nil }

// bedOption changes a bed's options before it starts.
type bedOption func(*Options)

func withMode(m policy.Mode) bedOption { return func(o *Options) { o.Directory = people{mode: m} } }
func withSwitches(s Switches) bedOption {
	return func(o *Options) { o.Switches = s }
}

func newBed(t *testing.T, options ...bedOption) *bed {
	t.Helper()
	return newBedOn(t, newFakeEngine(t), options...)
}

func newBedOn(t *testing.T, fake *fakeEngine, options ...bedOption) *bed {
	t.Helper()
	b := &bed{engine: fake, records: &records{}, peers: &peers{peer: peercred.Peer{UID: 1001, PID: 7}}, quota: newQuotas(), dir: t.TempDir()}
	b.index = engine.NewIndex(engine.NewClient(b.engine.socket), zap.NewNop())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		b.index.Run(ctx)
		close(done)
	}()
	resources := engine.NewResources(engine.NewClient(b.engine.socket))
	register, err := images.Open(filepath.Join(b.dir, "images.json"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	stage, err := binds.OpenStage(filepath.Join(b.dir, "binds"), filepath.Join(b.dir, "binds.json"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	store := engine.NewImages(engine.NewClient(b.engine.socket))
	o := Options{
		Images: store, Registry: store, Tags: register, Writings: register, Forgetter: register, ImageMode: policy.ImagesShared,
		Stage: stage, Staged: stage, Remounter: stage, Users: engine.NewPasswd(engine.NewClient(b.engine.socket)), StageDir: stage.Dir(), SocketOf: b.socket,
		Engine: b.engine.socket, Owners: b.index, Ledger: b.index, Resources: resources, Catalog: resources, Census: resources, Names: resources, Index: b.index, Directory: people{}, Recorder: b.records,
		Quota: b.quota, GPUs: AsAsked{}, Slices: b.quota, Limits: b.quota,
		Peers: b.peers, Processes: b.peers, Layouts: engine.NewClient(b.engine.socket), Links: noLinks{}, Switches: openSwitches, Log: zap.NewNop(), Now: time.Now,
	}
	for _, opt := range options {
		opt(&o)
	}
	if b.server, err = New(o); err != nil {
		t.Fatal(err)
	}
	for _, who := range []string{"alice", "admin", ""} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: b.socket(who), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		go b.server.Serve(l, who)
	}
	t.Cleanup(func() {
		if err := b.server.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		<-done
	})
	for range 500 {
		if _, _, synced := b.index.Size(); synced {
			return b
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the index is not in step with the fake Engine")
	return nil
}

func (b *bed) socket(who string) string { return filepath.Join(b.dir, who+".sock") }

// dial opens a connection to who's socket, "" for the shared one.
func (b *bed) dial(t *testing.T, who string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", b.socket(who))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// A reply is an answer, read whole.
type reply struct {
	status int
	header http.Header
	body   string
	// closes is true where the connection ends with the answer.
	closes bool
}

// message is the text of an error in the Engine's form.
func (r reply) message() string {
	var e struct{ Message string }
	if json.Unmarshal([]byte(r.body), &e) != nil {
		return "not JSON: " + r.body
	}
	return e.Message
}

// raw sends text as it is on alice's socket and reads one answer.
func (b *bed) raw(t *testing.T, text string) reply {
	t.Helper()
	c := b.dial(t, "alice")
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return readReply(t, bufio.NewReader(c), text)
}

func readReply(t *testing.T, br *bufio.Reader, request string) reply {
	t.Helper()
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(br, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("answer to %.80q: %v", request, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("answer to %.80q: %v", request, err)
	}
	return reply{resp.StatusCode, resp.Header, string(body), resp.Close}
}

// do sends a request with a JSON body, if any, on alice's socket.
func (b *bed) do(t *testing.T, method, target, body string) reply {
	t.Helper()
	text := method + " " + target + " HTTP/1.1\r\nHost: docker\r\nUser-Agent: test\r\n"
	if body != "" {
		text += fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	} else if method == http.MethodPost || method == http.MethodPut {
		text += "Content-Length: 0\r\n"
	}
	return b.raw(t, text+"\r\n"+body)
}

// noLinks stands for an Engine that follows none.
type noLinks struct{}

func (noLinks) Seal(string) error { return nil }
func (noLinks) Hold(string, string, []string) (*layers.Hold, error) {
	return nil, errors.New("this Engine has no layers")
}
func (noLinks) InUse(string, string) (bool, error) { return false, nil }
