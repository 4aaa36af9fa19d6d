package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/ds01/ds01-proxy/policy"
)

// id makes a full ID that begins with prefix.
func id(prefix string) string { return prefix + strings.Repeat("0", idLen-len(prefix)) }

func ownedBy(user string) map[string]string {
	if user == "" {
		return nil
	}
	return map[string]string{policy.LabelUser: user}
}

func TestFind(t *testing.T) {
	var (
		mine    = id("aaaaaaaaaaaa1")
		mineToo = id("aaaaaaaabbbb2")
		theirs  = id("aaaacccccccc3")
		trap    = id("bbbbbbbbbbbb4")
		trap2   = id("bbbbbbbbbbbb5")
		legacy  = id("dddddddddddd6")
		free    = id("eeeeeeeeeeee7")
	)
	tab := newTable(0)
	for _, c := range []Container{
		{ID: mine, Names: []string{"/other/alias", "/web"}, Labels: ownedBy("alice")},
		{ID: mineToo, Names: []string{"/dddd"}, Labels: ownedBy("alice")},
		{ID: theirs, Names: []string{"/db"}, Labels: ownedBy("bob")},
		// Names that bob chose to be in alice's way: her short ID, and a full ID.
		{ID: trap, Names: []string{"/" + mine[:12]}, Labels: ownedBy("bob")},
		{ID: trap2, Names: []string{"/" + mine}, Labels: ownedBy("bob")},
		{ID: legacy, Names: []string{"/old"}, Labels: map[string]string{policy.LabelLegacyUser: "carol"}},
		{ID: free, Names: []string{"/free"}},
	} {
		tab.add(entryOf(c))
	}
	for _, r := range []struct {
		user, ref string
		id        string
		how       finding
	}{
		{"alice", mine, mine, found},
		{"bob", mine, mine, found},
		{"", mine, mine, found},
		{"alice", "web", mine, found},
		{"alice", "/web", mine, found},
		{"bob", "web", mine, found},
		{"alice", "alias", "", absent},
		{"alice", "we", "", absent},
		{"alice", "WEB", "", absent},

		// The Engine prefers a name to a prefix; the owner's own come before both.
		{"alice", mine[:12], mine, found},
		{"alice", "/" + mine[:12], trap, found},
		{"bob", mine[:12], trap, found},
		{"carol", mine[:12], trap, found},
		{"", mine[:12], trap, found},
		{"alice", mine[:11], mine, found},
		{"alice", mine[:13], mine, found},
		{"carol", mine[:13], mine, found},
		{"alice", mine[:63], mine, found},
		{"carol", "dddd", legacy, found},
		{"alice", "dddd", mineToo, found},
		{"bob", "dddd", mineToo, found},

		{"bob", "aaaa", theirs, found},
		{"alice", "aaaa", "", ambiguous},
		{"carol", "aaaa", "", ambiguous},
		{"alice", "aaaaaaaab", mineToo, found},
		{"bob", "bbbb", "", ambiguous},
		{"alice", "bbbbbbbbbbbb4", trap, found},
		{"alice", "eee", free, found},
		{"alice", "free", free, found},
		{"alice", "f", "", absent},
		{"alice", id("f"), "", absent},
		{"alice", mine + "0", "", absent},
		{"nobody", "old", legacy, found},
		{"alice", "", "", absent},
	} {
		e, how := tab.find(r.user, r.ref)
		got := ""
		if e != nil {
			got = e.id
		}
		if got != r.id || how != r.how {
			t.Errorf("%s asks for %q: got %.13q, %d; want %.13q, %d", r.user, r.ref, got, how, r.id, r.how)
		}
	}
}

func TestTableForgets(t *testing.T) {
	tab := newTable(0)
	one := tab.add(entryOf(Container{ID: id("a1"), Names: []string{"/web"}, Labels: ownedBy("alice")}))
	two := tab.add(entryOf(Container{ID: id("a2"), Names: []string{"/db"}, Labels: ownedBy("alice")}))
	// Whoever is added again keeps the owner that was known first.
	if again := tab.add(entryOf(Container{ID: id("a1"), Labels: ownedBy("bob")})); again != one || again.owner != "alice" {
		t.Errorf("added again: %+v", again)
	}
	tab.rename(one, "old")
	tab.rename(two, "web")
	tab.rename(one, "older")
	for ref, want := range map[string]*entry{"web": two, "older": one, "old": nil, "db": nil} {
		if e, _ := tab.find("alice", ref); e != want {
			t.Errorf("%s: got %+v, want %+v", ref, e, want)
		}
	}
	tab.setChanges(two, []*change{{}})
	tab.remove(two.id)
	tab.remove(two.id)
	if e, how := tab.find("alice", "web"); e != nil || how != absent {
		t.Errorf("removed: %+v, %d", e, how)
	}
	tab.remove(one.id)
	if n := len(tab.byID) + len(tab.byName) + len(tab.byOwner) + len(tab.unsure); n != 0 {
		t.Errorf("an empty table keeps %+v", tab)
	}
}

// A fakeEngine records what it is asked and answers as the Engine does.
type fakeEngine struct {
	socket string
	server *http.Server

	mu         sync.Mutex
	version    string
	containers []Container
	execs      map[string]string
	requests   []string
	// silent keeps events from the streams.
	silent bool
	// deaf refuses subscriptions.
	deaf    bool
	streams map[chan any]struct{}
	// instead answers everything, where set.
	instead http.Handler
}

func startEngine(t *testing.T, containers ...Container) *fakeEngine {
	t.Helper()
	f := &fakeEngine{
		socket: filepath.Join(t.TempDir(), "engine.sock"), version: "28.0.0",
		containers: containers, execs: make(map[string]string), streams: make(map[chan any]struct{}),
	}
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.json(w, http.StatusOK, map[string]any{"Version": f.version, "ApiVersion": "1.48", "MinAPIVersion": "1.24"})
	})
	mux.HandleFunc("GET /info", func(w http.ResponseWriter, _ *http.Request) {
		f.json(w, http.StatusOK, map[string]any{"CgroupDriver": "systemd"})
	})
	mux.HandleFunc("GET /containers/json", f.list)
	mux.HandleFunc("GET /containers/{ref}/json", f.inspect)
	mux.HandleFunc("GET /exec/{id}/json", f.inspectExec)
	mux.HandleFunc("GET /events", f.events)
	f.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.requests = append(f.requests, r.RequestURI)
		var answer http.Handler = mux
		if f.instead != nil {
			answer = f.instead
		}
		f.mu.Unlock()
		answer.ServeHTTP(w, r)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = f.server.Serve(l)
	}()
	t.Cleanup(func() {
		f.server.Close()
		<-done
	})
	return f
}

func (f *fakeEngine) json(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (f *fakeEngine) list(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.URL.Query().Get("all") != "1" {
		f.json(w, http.StatusOK, []Container{})
		return
	}
	f.json(w, http.StatusOK, f.containers)
}

func (f *fakeEngine) inspect(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ref := strings.TrimPrefix(r.PathValue("ref"), "/")
	for _, is := range []func(Container) bool{
		func(c Container) bool { return c.ID == ref },
		func(c Container) bool { return slices.Contains(c.Names, "/"+ref) },
		func(c Container) bool { return strings.HasPrefix(c.ID, ref) },
	} {
		if i := slices.IndexFunc(f.containers, is); i >= 0 {
			c := f.containers[i]
			f.json(w, http.StatusOK, map[string]any{"Id": c.ID, "Name": c.Names[0], "Config": map[string]any{"Labels": c.Labels}})
			return
		}
	}
	f.json(w, http.StatusNotFound, map[string]any{"message": "No such container: " + ref})
}

func (f *fakeEngine) inspectExec(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	in, ok := f.execs[r.PathValue("id")]
	if !ok {
		f.json(w, http.StatusNotFound, map[string]any{"message": "No such exec instance: " + r.PathValue("id")})
		return
	}
	f.json(w, http.StatusOK, map[string]any{"ID": r.PathValue("id"), "ContainerID": in})
}

func (f *fakeEngine) events(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	if f.deaf {
		f.mu.Unlock()
		f.json(w, http.StatusInternalServerError, map[string]any{"message": "not now"})
		return
	}
	ch := make(chan any, 100)
	f.streams[ch] = struct{}{}
	f.mu.Unlock()
	_ = http.NewResponseController(w).Flush()
	enc := json.NewEncoder(w)
	for {
		select {
		case e, open := <-ch:
			if !open {
				return
			}
			_ = enc.Encode(e)
			_ = http.NewResponseController(w).Flush()
		case <-r.Context().Done():
			f.mu.Lock()
			delete(f.streams, ch)
			f.mu.Unlock()
			return
		}
	}
}

// endStreams ends every subscription; deaf says whether new ones are refused.
func (f *fakeEngine) endStreams(deaf bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deaf = deaf
	for ch := range f.streams {
		delete(f.streams, ch)
		close(ch)
	}
}

// send sends an event to every stream. f.mu is held.
func (f *fakeEngine) send(kind, action, id string, at time.Time, attributes map[string]string) {
	if f.silent {
		return
	}
	for ch := range f.streams {
		ch <- map[string]any{
			"Type": kind, "Action": action, "scope": "local", "time": at.Unix(), "timeNano": at.UnixNano(),
			"Actor": map[string]any{"ID": id, "Attributes": attributes},
		}
	}
}

func (f *fakeEngine) create(c Container) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.containers = append(f.containers, c)
	// Of a label that is called name, the Engine lets the container's name win.
	attributes := make(map[string]string)
	maps.Copy(attributes, c.Labels)
	maps.Copy(attributes, map[string]string{"image": "busybox", "name": strings.TrimPrefix(c.Names[0], "/")})
	f.send("container", "create", c.ID, time.Now(), attributes)
}

func (f *fakeEngine) rename(id, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, c := range f.containers {
		if c.ID == id {
			f.containers[i].Names = []string{"/" + name}
			f.send("container", "rename", id, time.Now(), map[string]string{"name": name, "oldName": c.Names[0]})
		}
	}
}

func (f *fakeEngine) destroy(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.containers = slices.DeleteFunc(f.containers, func(c Container) bool { return c.ID == id })
	f.send("container", "destroy", id, time.Now(), map[string]string{"name": "x"})
}

// questions takes the requests about containers and execs that came since the
// last call.
func (f *fakeEngine) questions() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, r := range f.requests {
		if strings.HasPrefix(r, "/containers/") || strings.HasPrefix(r, "/exec/") {
			out = append(out, r)
		}
	}
	f.requests = nil
	return out
}

// startIndex runs an index until the test ends and waits until it is in step.
func startIndex(t *testing.T, f *fakeEngine) *Index {
	t.Helper()
	x := NewIndex(NewClient(f.socket), zap.NewNop())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		x.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		x.client.http.CloseIdleConnections()
	})
	waitFor(t, "the index to be in step", inStep(x, true))
	f.questions()
	return x
}

func inStep(x *Index, want bool) func() bool {
	return func() bool {
		_, _, synced := x.Size()
		return synced == want
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// settle waits until every event sent so far is applied: the one that it sends
// comes after them.
func settle(t *testing.T, f *fakeEngine, x *Index) {
	t.Helper()
	mark := Container{ID: id("9999"), Names: []string{"/mark"}, Labels: ownedBy("nobody")}
	known := func() bool {
		x.mu.RLock()
		defer x.mu.RUnlock()
		return x.table.byID[mark.ID] != nil
	}
	f.create(mark)
	waitFor(t, "events", known)
	f.destroy(mark.ID)
	waitFor(t, "events", func() bool { return !known() })
}

// An answer is what a look-up is expected to come to: an ID, "404", "400" or
// "503", and the owner that goes with an ID.
type answer struct{ id, owner string }

func ask(x *Index, user, ref string) (answer, error) {
	obj, err := x.Container(context.Background(), user, ref)
	var status *StatusError
	switch {
	case errors.Is(err, ErrNotFound):
		return answer{id: "404"}, err
	case Unreachable(err):
		return answer{id: "503"}, err
	case errors.As(err, &status):
		return answer{id: strconv.Itoa(status.Status)}, err
	case err != nil:
		return answer{id: err.Error()}, err
	case obj.Kind != "container" || obj.Ref != ref:
		return answer{id: fmt.Sprintf("%+v", obj)}, nil
	}
	return answer{obj.ID, obj.Owner}, nil
}

// wantAnswer checks one look-up and the questions that it costs the Engine.
func wantAnswer(t *testing.T, f *fakeEngine, x *Index, user, ref string, want answer, questions ...string) {
	t.Helper()
	f.questions()
	before := x.Asked()
	got, err := ask(x, user, ref)
	if got != want {
		t.Errorf("%s asks for %q: got %.70v (%v), want %v", user, ref, got, err, want)
	}
	if asked := f.questions(); !slices.Equal(asked, questions) {
		t.Errorf("%s asks for %q: the Engine was asked %q, want %q", user, ref, asked, questions)
	}
	if n := x.Asked() - before; n != uint64(len(questions)) {
		t.Errorf("%s asks for %q: %d questions counted, want %d", user, ref, n, len(questions))
	}
}

const list = "/containers/json?all=1"

func TestIndexAnswersFromMemory(t *testing.T) {
	web, db := id("aaaaaaaaaaaa1"), id("aaaacccccccc2")
	f := startEngine(t,
		Container{ID: web, Names: []string{"/web"}, Labels: ownedBy("alice")},
		Container{ID: db, Names: []string{"/" + web[:12]}, Labels: ownedBy("bob")},
		Container{ID: id("f1"), Names: []string{"/infra"}, Labels: map[string]string{policy.LabelProtected: "true"}},
	)
	x := startIndex(t, f)
	if n, execs, _ := x.Size(); n != 3 || execs != 0 {
		t.Errorf("%d containers and %d execs known", n, execs)
	}
	for range 2 {
		wantAnswer(t, f, x, "alice", web, answer{web, "alice"})
		wantAnswer(t, f, x, "bob", web, answer{web, "alice"})
		wantAnswer(t, f, x, "alice", "web", answer{web, "alice"})
		wantAnswer(t, f, x, "alice", "/web", answer{web, "alice"})
		wantAnswer(t, f, x, "alice", web[:12], answer{web, "alice"})
		wantAnswer(t, f, x, "bob", web[:12], answer{db, "bob"})
		wantAnswer(t, f, x, "alice", "aaaa", answer{web, "alice"})
		wantAnswer(t, f, x, "carol", "aaaa", answer{id: "400"})
		wantAnswer(t, f, x, "alice", "infra", answer{id("f1"), ""})
	}
	obj, err := x.Container(t.Context(), "alice", "infra")
	if want := (policy.Object{Kind: "container", ID: id("f1"), Ref: "infra", Protected: true}); err != nil || obj != want {
		t.Errorf("got %+v, %v; want %+v", obj, err, want)
	}
}

func TestIndexAsksOnceForAMiss(t *testing.T) {
	web := id("a1")
	f := startEngine(t, Container{ID: web, Names: []string{"/web"}, Labels: ownedBy("alice")})
	x := startIndex(t, f)
	wantAnswer(t, f, x, "alice", "none", answer{id: "404"}, "/containers/none/json")
	wantAnswer(t, f, x, "alice", id("b"), answer{id: "404"}, "/containers/"+id("b")+"/json")
	_, err := x.Container(t.Context(), "alice", "none")
	var status *StatusError
	if !errors.As(err, &status) || status.Message != "No such container: none" || status.Status != http.StatusNotFound {
		t.Errorf("the Engine's own words are lost: %v", err)
	}

	// Containers that the events have not told of yet.
	f.mu.Lock()
	f.silent = true
	f.mu.Unlock()
	late := id("c1")
	f.create(Container{ID: late, Names: []string{"/late"}, Labels: ownedBy("bob")})
	wantAnswer(t, f, x, "alice", "late", answer{late, "bob"}, "/containers/late/json")
	wantAnswer(t, f, x, "alice", late, answer{late, "bob"})
	wantAnswer(t, f, x, "bob", late[:12], answer{late, "bob"})
	// Its name may be another's by the time the event comes.
	wantAnswer(t, f, x, "bob", "late", answer{late, "bob"}, "/containers/late/json")

	// An alias that a link gave, as the Engine spells it.
	f.mu.Lock()
	f.containers[0].Names = []string{"/web", "/app/db"}
	f.mu.Unlock()
	wantAnswer(t, f, x, "alice", "app/db", answer{web, "alice"}, "/containers/app%2Fdb/json")
}

func TestImpossibleReferencesNeverReachTheEngine(t *testing.T) {
	f := startEngine(t, Container{ID: id("a1"), Names: []string{"/web"}, Labels: ownedBy("alice")})
	refs := []string{
		"", "/", "//", "//web", "web/", "/web/", "a//b", ".", "..", "/..", "../x", "a/..", "a/../web", "a/./b", "a/.", "./web",
		"web?x=1", "?", "web#x", "web json", " web", "web ", "a%2Fb", "%2e%2e", "web\x00", "web\r\nX: y", "a\\b", "a:b", "a@b", "wéb", "a+b", "a*", "{}",
	}
	check := func(t *testing.T, x *Index) {
		for _, ref := range refs {
			wantAnswer(t, f, x, "alice", ref, answer{id: "404"})
		}
	}
	t.Run("in step", func(t *testing.T) { check(t, startIndex(t, f)) })
	t.Run("out of step", func(t *testing.T) { check(t, NewIndex(NewClient(f.socket), zap.NewNop())) })
}

func TestIndexFollowsEvents(t *testing.T) {
	web := id("a1")
	f := startEngine(t, Container{ID: web, Names: []string{"/web"}, Labels: ownedBy("alice")})
	x := startIndex(t, f)

	db := id("b1")
	f.create(Container{ID: db, Names: []string{"/db"}, Labels: map[string]string{policy.LabelUser: "bob", policy.LabelProtected: "true", "name": "not-db"}})
	settle(t, f, x)
	wantAnswer(t, f, x, "bob", "db", answer{db, "bob"})
	wantAnswer(t, f, x, "bob", "b1", answer{db, "bob"})
	if obj, err := x.Container(t.Context(), "bob", "db"); err != nil || !obj.Protected {
		t.Errorf("db: %+v, %v; want it protected", obj, err)
	}

	f.rename(web, "www")
	f.rename(db, "web")
	settle(t, f, x)
	wantAnswer(t, f, x, "alice", "www", answer{web, "alice"})
	wantAnswer(t, f, x, "alice", "web", answer{db, "bob"})
	wantAnswer(t, f, x, "bob", "db", answer{id: "404"}, "/containers/db/json")

	f.destroy(web)
	settle(t, f, x)
	wantAnswer(t, f, x, "alice", "www", answer{id: "404"}, "/containers/www/json")
	wantAnswer(t, f, x, "alice", web, answer{id: "404"}, "/containers/"+web+"/json")

	// A name that is free again goes to whoever takes it.
	www := id("c1")
	f.create(Container{ID: www, Names: []string{"/www"}, Labels: ownedBy("carol")})
	settle(t, f, x)
	wantAnswer(t, f, x, "alice", "www", answer{www, "carol"})

	// What is no news about a container, or older than the list, changes nothing.
	f.mu.Lock()
	f.send("container", "start", www, time.Now(), map[string]string{"name": "started"})
	f.send("network", "destroy", www, time.Now(), map[string]string{"name": "bridge"})
	f.send("container", "rename", www, time.Now().Add(-time.Hour), map[string]string{"name": "stale"})
	f.send("container", "rename", id("404"), time.Now(), map[string]string{"name": "ghost"})
	f.mu.Unlock()
	settle(t, f, x)
	wantAnswer(t, f, x, "carol", "www", answer{www, "carol"})
	wantAnswer(t, f, x, "carol", "stale", answer{id: "404"}, "/containers/stale/json")
	wantAnswer(t, f, x, "carol", "ghost", answer{id: "404"}, "/containers/ghost/json")
}

// The stream must not lack what the index lives on, nor carry all that a busy
// server has to say.
func TestIndexSubscribesToWhatItReads(t *testing.T) {
	f := startEngine(t)
	before := time.Now()
	x := NewIndex(NewClient(f.socket), zap.NewNop())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		x.Run(ctx)
	}()
	waitFor(t, "the index to be in step", inStep(x, true))
	cancel()
	<-done
	f.mu.Lock()
	defer f.mu.Unlock()
	var order []string
	for _, r := range f.requests {
		path, query, _ := strings.Cut(r, "?")
		order = append(order, path)
		if path != "/events" {
			continue
		}
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		var filters map[string]map[string]bool
		if err := json.Unmarshal([]byte(q.Get("filters")), &filters); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(filters); got != "map[event:map[create:true destroy:true die:true rename:true start:true update:true] type:map[container:true]]" {
			t.Errorf("filters are %s", got)
		}
		since, err := strconv.ParseInt(q.Get("since"), 10, 64)
		if err != nil || since >= before.Unix()+1 {
			t.Errorf("since is %d, %v; the subscription begins at %d", since, err, before.Unix())
		}
	}
	// A container created between list and subscription would never be known.
	if events, listed := slices.Index(order, "/events"), slices.Index(order, "/containers/json"); events < 0 || listed < events {
		t.Errorf("asked in the order %q", order)
	}
}

func TestLostStream(t *testing.T) {
	web, db := id("a1"), id("b1")
	f := startEngine(t,
		Container{ID: web, Names: []string{"/web"}, Labels: ownedBy("alice")},
		Container{ID: db, Names: []string{"/db"}, Labels: ownedBy("bob")},
	)
	x := startIndex(t, f)
	f.endStreams(true)
	waitFor(t, "the index to notice", inStep(x, false))

	// Nobody tells the index of these.
	f.destroy(db)
	f.rename(web, "db")
	late := id("c1")
	f.create(Container{ID: late, Names: []string{"/web"}, Labels: ownedBy("carol")})
	for range 2 {
		wantAnswer(t, f, x, "alice", "db", answer{web, "alice"}, list)
		wantAnswer(t, f, x, "alice", "web", answer{late, "carol"}, list)
		wantAnswer(t, f, x, "alice", "a1", answer{web, "alice"}, list)
		// An ID's owner never changes.
		wantAnswer(t, f, x, "alice", web, answer{web, "alice"})
	}
	wantAnswer(t, f, x, "alice", "none", answer{id: "404"}, list, "/containers/none/json")

	f.endStreams(false)
	waitFor(t, "the index to be in step again", inStep(x, true))
	wantAnswer(t, f, x, "alice", "db", answer{web, "alice"})
	wantAnswer(t, f, x, "alice", "web", answer{late, "carol"})
	wantAnswer(t, f, x, "bob", db, answer{id: "404"}, "/containers/"+db+"/json")
}

// An Engine that restarts may be another version with another cgroup driver.
func TestStateIsAskedOncePerEngine(t *testing.T) {
	f := startEngine(t)
	x := startIndex(t, f)
	f.mu.Lock()
	f.requests = nil
	f.mu.Unlock()
	want := State{Version: Version{Version: "28.0.0", APIVersion: "1.48", MinAPIVersion: "1.24"}, Info: Info{CgroupDriver: "systemd"}}
	for range 3 {
		if st, err := x.State(t.Context()); err != nil || !reflect.DeepEqual(*st, want) {
			t.Errorf("got %+v, %v; want %+v", st, err, want)
		}
	}
	f.mu.Lock()
	asked := slices.Clone(f.requests)
	f.version = "29.0.0"
	f.mu.Unlock()
	if len(asked) != 0 {
		t.Errorf("what is known was asked again: %q", asked)
	}
	f.endStreams(false)
	waitFor(t, "the new version", func() bool {
		st, err := x.State(t.Context())
		return err == nil && st.Version.Version == "29.0.0"
	})
}

func TestEngineAway(t *testing.T) {
	web := id("a1")
	f := startEngine(t, Container{ID: web, Names: []string{"/web"}, Labels: ownedBy("alice")})
	x := startIndex(t, f)
	x.AddExec("e1", web)
	f.server.Close()
	waitFor(t, "the index to notice", inStep(x, false))
	for ref, want := range map[string]answer{"web": {id: "503"}, "none": {id: "503"}, "a1": {id: "503"}, web: {web, "alice"}} {
		if got, err := ask(x, "alice", ref); got != want {
			t.Errorf("%.12s: got %v (%v), want %v", ref, got, err, want)
		}
	}
	if _, err := x.State(t.Context()); !Unreachable(err) {
		t.Errorf("state: %v", err)
	}
	if obj, err := x.Exec(t.Context(), "e1"); err != nil || obj.Owner != "alice" {
		t.Errorf("an exec that is known: %+v, %v", obj, err)
	}
	if obj, err := x.Exec(t.Context(), "e2"); !Unreachable(err) {
		t.Errorf("an exec that is not: %+v, %v", obj, err)
	}
}

func TestBeginChange(t *testing.T) {
	web, db, other := id("a1"), id("a2"), id("b1")
	f := startEngine(t,
		Container{ID: web, Names: []string{"/web"}, Labels: ownedBy("alice")},
		Container{ID: db, Names: []string{"/db"}, Labels: ownedBy("alice")},
		Container{ID: other, Names: []string{"/other"}, Labels: ownedBy("bob")},
	)
	x := startIndex(t, f)

	f.mu.Lock()
	f.silent = true
	f.mu.Unlock()
	end := x.BeginChange(web, "www")
	wantAnswer(t, f, x, "alice", "web", answer{web, "alice"}, "/containers/web/json")
	wantAnswer(t, f, x, "bob", "web", answer{web, "alice"}, "/containers/web/json")
	// Other names of the same user do not depend on it.
	wantAnswer(t, f, x, "alice", "db", answer{db, "alice"})
	wantAnswer(t, f, x, "bob", "other", answer{other, "bob"})
	wantAnswer(t, f, x, "alice", web, answer{web, "alice"})

	// The Engine refused.
	end(false)
	wantAnswer(t, f, x, "alice", "web", answer{web, "alice"})
	wantAnswer(t, f, x, "bob", "web", answer{web, "alice"})

	// The Engine did it, and its event is late.
	end = x.BeginChange(web, "www")
	f.rename(web, "www")
	end(true)
	wantAnswer(t, f, x, "alice", "www", answer{web, "alice"}, "/containers/www/json")
	wantAnswer(t, f, x, "alice", "web", answer{id: "404"}, "/containers/web/json")
	wantAnswer(t, f, x, "bob", "web", answer{id: "404"}, "/containers/web/json")
	f.create(Container{ID: id("c1"), Names: []string{"/web"}, Labels: ownedBy("bob")})
	wantAnswer(t, f, x, "alice", "web", answer{id("c1"), "bob"}, "/containers/web/json")

	f.mu.Lock()
	f.silent = false
	f.send("container", "rename", web, time.Now(), map[string]string{"name": "www"})
	f.mu.Unlock()
	settle(t, f, x)
	wantAnswer(t, f, x, "alice", "www", answer{web, "alice"})
	wantAnswer(t, f, x, "alice", "db", answer{db, "alice"})

	// The event came before the answer.
	end = x.BeginChange(db, "")
	f.destroy(db)
	settle(t, f, x)
	end(true)
	wantAnswer(t, f, x, "alice", "www", answer{web, "alice"})
	wantAnswer(t, f, x, "alice", db, answer{id: "404"}, "/containers/"+db+"/json")

	// Nobody knows this one, and nothing is to be unsure about.
	x.BeginChange(id("404"), "")(true)
	wantAnswer(t, f, x, "alice", "www", answer{web, "alice"})
}

func TestTwoChangesOfOneContainer(t *testing.T) {
	web := id("a1")
	f := startEngine(t, Container{ID: web, Names: []string{"/web"}, Labels: ownedBy("alice")})
	x := startIndex(t, f)
	first, second := x.BeginChange(web, "one"), x.BeginChange(web, "two")
	f.rename(web, "one")
	first(true)
	settle(t, f, x)
	wantAnswer(t, f, x, "alice", "one", answer{web, "alice"}, "/containers/one/json")
	second(false)
	wantAnswer(t, f, x, "alice", "one", answer{web, "alice"})
}

// An event that never comes must not make every name a question for ever.
func TestReloadEndsAnsweredChanges(t *testing.T) {
	web, db := id("a1"), id("b1")
	f := startEngine(t,
		Container{ID: web, Names: []string{"/web"}, Labels: ownedBy("alice")},
		Container{ID: db, Names: []string{"/db"}, Labels: ownedBy("bob")},
	)
	x := startIndex(t, f)
	f.mu.Lock()
	f.silent = true
	f.mu.Unlock()
	answered, underWay := x.BeginChange(web, "www"), x.BeginChange(db, "")
	f.rename(web, "www")
	answered(true)
	if _, err := x.reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, f, x, "alice", "www", answer{web, "alice"})
	wantAnswer(t, f, x, "bob", "db", answer{db, "bob"}, "/containers/db/json")
	underWay(false)
	wantAnswer(t, f, x, "bob", "db", answer{db, "bob"})
}

func TestAddContainer(t *testing.T) {
	f := startEngine(t)
	x := startIndex(t, f)
	web := id("a1")
	x.AddContainer(Container{ID: web, Names: []string{"web"}, Labels: ownedBy("alice")})
	x.AddContainer(Container{})
	wantAnswer(t, f, x, "bob", web, answer{web, "alice"})
	wantAnswer(t, f, x, "bob", "web", answer{web, "alice"})
	if n, _, _ := x.Size(); n != 1 {
		t.Errorf("%d containers known", n)
	}

	// Without a name the Engine chose one; its event brings it.
	db := id("b1")
	x.AddContainer(Container{ID: db, Names: []string{""}, Labels: ownedBy("alice")})
	wantAnswer(t, f, x, "alice", db[:12], answer{db, "alice"})
	f.create(Container{ID: db, Names: []string{"/brave_curie"}, Labels: ownedBy("alice")})
	settle(t, f, x)
	wantAnswer(t, f, x, "alice", "brave_curie", answer{db, "alice"})

	// Nobody's answer takes a container away from its owner.
	x.AddContainer(Container{ID: web, Names: []string{"/web2"}, Labels: ownedBy("mallory")})
	wantAnswer(t, f, x, "alice", web, answer{web, "alice"})
	wantAnswer(t, f, x, "alice", "web", answer{web, "alice"})
}

func TestExec(t *testing.T) {
	web := id("a1")
	f := startEngine(t, Container{ID: web, Names: []string{"/web"}, Labels: map[string]string{policy.LabelUser: "alice", policy.LabelProtected: "true"}})
	f.execs["e2"], f.execs["e4"] = web, ""
	x := startIndex(t, f)
	x.AddExec("e1", web)
	x.AddExec("", web)
	x.AddExec("e3", "")
	for _, r := range []struct {
		id        string
		questions []string
	}{
		{"e1", nil},
		{"e2", []string{"/exec/e2/json"}},
		{"e2", nil},
	} {
		f.questions()
		obj, err := x.Exec(t.Context(), r.id)
		// What messages about protection call it is the container.
		if want := (policy.Object{Kind: "exec", ID: r.id, Ref: "web", Owner: "alice", Protected: true}); err != nil || obj != want {
			t.Errorf("%s: got %+v, %v; want %+v", r.id, obj, err, want)
		}
		if got := f.questions(); !slices.Equal(got, r.questions) {
			t.Errorf("%s: the Engine was asked %q, want %q", r.id, got, r.questions)
		}
	}
	// e3 has no container here, and e4 has none at the Engine either.
	for _, id := range []string{"e3", "e4"} {
		if obj, err := x.Exec(t.Context(), id); !errors.Is(err, ErrNotFound) || obj.Owner != "" {
			t.Errorf("%s: got %+v, %v; want %v", id, obj, err, ErrNotFound)
		}
	}
	if _, n, _ := x.Size(); n != 2 {
		t.Errorf("%d execs are known, want 2", n)
	}
	if _, err := x.reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, n, _ := x.Size(); n != 2 {
		t.Errorf("%d execs are known after a reload, want 2", n)
	}
	f.destroy(web)
	if _, err := x.reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, n, _ := x.Size(); n != 0 {
		t.Errorf("%d execs of a container that is gone are known", n)
	}
}

func TestExecsAreBounded(t *testing.T) {
	web := id("a1")
	f := startEngine(t, Container{ID: web, Names: []string{"/web"}, Labels: ownedBy("alice")})
	x := startIndex(t, f)
	exec := func(i int) string { return fmt.Sprintf("%064x", i) }
	for i := range maxExecs {
		x.AddExec(exec(i), web)
	}
	// What is known already takes no place.
	x.AddExec(exec(7), web)
	const more = 3
	for i := maxExecs; i < maxExecs+more; i++ {
		x.AddExec(exec(i), web)
	}
	if _, n, _ := x.Size(); n != maxExecs || len(x.recent) != maxExecs {
		t.Errorf("%d execs in %d places, want %d", n, len(x.recent), maxExecs)
	}
	for i, known := range map[int]bool{0: false, more - 1: false, more: true, maxExecs - 1: true, maxExecs + more - 1: true} {
		if obj, err := x.Exec(t.Context(), exec(i)); (err == nil) != known {
			t.Errorf("exec %d: %+v, %v; want it known %v", i, obj, err, known)
		}
	}
}

func TestStatusOtherThanSuccessIsTheEnginesOwn(t *testing.T) {
	f := startEngine(t)
	x := startIndex(t, f)
	f.mu.Lock()
	f.instead = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/containers/silent/json" {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		f.json(w, http.StatusConflict, map[string]any{"message": "not like that"})
	})
	f.mu.Unlock()
	for ref, want := range map[string]StatusError{
		"web": {http.StatusConflict, "not like that"}, "silent": {http.StatusBadGateway, "the Engine answered 502 Bad Gateway"},
	} {
		var status *StatusError
		if obj, err := x.Container(t.Context(), "alice", ref); !errors.As(err, &status) || *status != want || errors.Is(err, ErrNotFound) || Unreachable(err) {
			t.Errorf("%s: got %+v, %v; want %+v", ref, obj, err, want)
		}
	}
}
