package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	apicontainer "github.com/docker/docker/api/types/container"

	"github.com/ds01/ds01-proxy/integration/lab"
	"github.com/ds01/ds01-proxy/integration/lab/bodies"
)

// The bodies of the differential test are the seed's.
const (
	createSeed  = 11
	createCases = 300
)

// An inspection is what the Engine shows of a container that was made of a body.
type inspection struct {
	status  int
	message string
	Config  *apicontainer.Config
	Host    *apicontainer.HostConfig `json:"HostConfig"`
}

// createdBy sends a body to be created over a socket, and returns what came of it as the
// Engine's own socket shows it.
func createdBy(t *testing.T, socket, body string) inspection {
	t.Helper()
	got := ask(t, socket, "POST", "/v1.41/containers/create", body, "Content-Type", "application/json")
	out := inspection{status: got.status, message: got.body}
	if got.status != http.StatusCreated {
		return out
	}
	var created struct{ ID string }
	if err := json.Unmarshal([]byte(got.body), &created); err != nil {
		t.Fatal(err)
	}
	shown := ask(t, theEngine.Socket, "GET", "/v1.41/containers/"+created.ID+"/json", "")
	if err := json.Unmarshal([]byte(shown.body), &out); err != nil {
		t.Fatal(err)
	}
	if gone := ask(t, theEngine.Socket, "DELETE", "/v1.41/containers/"+created.ID+"?force=1&v=1", ""); gone.status != http.StatusNoContent {
		t.Fatalf("remove %s: %d %s", created.ID, gone.status, gone.body)
	}
	if out.Config.Hostname == created.ID[:12] {
		out.Config.Hostname = ""
	}
	return out
}

// TestCreateBecomesWhatTheBodySays makes a container of every body on alice's socket
// and on the Engine's own. Both must be what the body says when it is decoded once:
// hers in her slice and with her label, and without the host settings that the
// Engine itself would read from the top level.
func TestCreateBecomesWhatTheBodySays(t *testing.T) {
	// Host settings and limits are other tests' matter.
	limits := filepath.Join(t.TempDir(), "limits.yaml")
	if err := os.WriteFile(limits, []byte("default_group: student\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := configured(t, "profile: open\nlimits_file: "+limits+"\n")
	m := bodies.NewMaker(createSeed)
	both, refused := 0, 0
	for range createCases {
		body := m.Create()
		ours, raw := createdBy(t, p.Socket(lab.Alice), body), createdBy(t, theEngine.Socket, body)
		err := compareMade(body, ours, raw)
		if err != nil {
			t.Errorf("seed %d: %q: %v", createSeed, body, err)
		}
		switch {
		case ours.status != http.StatusCreated:
			refused++
		case raw.status == http.StatusCreated:
			both++
		}
	}
	t.Logf("%d bodies: %d became containers on both sockets, %d were refused", createCases, both, refused)
	if both < createCases/5 || refused < createCases/10 {
		t.Errorf("the test has lost its bite")
	}
}

// compareMade returns what is wrong with what came of a body.
func compareMade(body string, ours, raw inspection) error {
	reading, err := bodies.Read(body)
	if ours.status != http.StatusCreated {
		var one json.RawMessage
		whole := json.Unmarshal([]byte(body), &one) == nil
		if raw.status == http.StatusCreated && whole && !reading.TopLevel {
			return fmt.Errorf("alice is answered %d %s, and the Engine takes it", ours.status, ours.message)
		}
		return nil
	}
	if err := onceDecoded(body, ours); err != nil {
		return err
	}
	if raw.status != http.StatusCreated {
		// What stands at the top level can be wrong in itself, to the Engine alone.
		if err == nil && !reading.TopLevel {
			return fmt.Errorf("alice is answered 201, the Engine's own socket %d %s", raw.status, raw.message)
		}
		return nil
	}
	if reading.TopLevel {
		return nil
	}
	raw.Host.CgroupParent = ours.Host.CgroupParent
	raw.Config.Labels = ours.Config.Labels
	if reading.Host == nil {
		// The Engine names its runtime only where there are host settings.
		raw.Host.Runtime = ours.Host.Runtime
	}
	return errors.Join(differences(ours.Host, raw.Host), differences(ours.Config, raw.Config))
}

// differences names the fields in which two structs differ; none and an empty list
// are the same.
func differences[T any](ours, raw *T) error {
	var errs []error
	a, b := reflect.ValueOf(ours).Elem(), reflect.ValueOf(raw).Elem()
	for i := range a.NumField() {
		x, y := a.Field(i), b.Field(i)
		if k := x.Kind(); (k == reflect.Slice || k == reflect.Map) && x.Len()+y.Len() == 0 {
			continue
		}
		if !reflect.DeepEqual(x.Interface(), y.Interface()) {
			errs = append(errs, fmt.Errorf("%s is %+v, and %+v on the Engine's own socket", a.Type().Field(i).Name, x, y))
		}
	}
	return errors.Join(errs...)
}

// onceDecoded returns how alice's container differs from what the body says.
func onceDecoded(body string, ours inspection) error {
	var says apicontainer.CreateRequest
	dec := json.NewDecoder(strings.NewReader(body))
	if err := dec.Decode(&says); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows, and it is taken")
	}
	if says.HostConfig == nil {
		says.HostConfig = &apicontainer.HostConfig{}
	}
	for key, value := range says.Labels {
		if !strings.HasPrefix(key, "ds01.") && ours.Config.Labels[key] != value {
			return fmt.Errorf("label %s is %q", key, ours.Config.Labels[key])
		}
	}
	want, got := says.HostConfig, ours.Host
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"owner", ours.Config.Labels["ds01.user"], "alice"},
		{"protection", ours.Config.Labels["ds01.protected"], "false"},
		{"cgroup parent", got.CgroupParent, "/ds01.slice/ds01-student.slice/ds01-student-alice.slice"},
		{"Privileged", got.Privileged, want.Privileged},
		{"Binds", strings.Join(got.Binds, " "), strings.Join(want.Binds, " ")},
		{"CapAdd", strings.Join(got.CapAdd, " "), strings.Join(want.CapAdd, " ")},
		{"PidMode", got.PidMode, want.PidMode},
		{"UTSMode", got.UTSMode, want.UTSMode},
		{"NetworkMode", strings.Replace(string(got.NetworkMode), "default", "", 1), strings.Replace(string(want.NetworkMode), "default", "", 1)},
		{"Memory", got.Memory, want.Memory},
		{"NanoCPUs", got.NanoCPUs, want.NanoCPUs},
		{"ReadonlyRootfs", got.ReadonlyRootfs, want.ReadonlyRootfs},
		{"Image", ours.Config.Image, says.Image},
		{"User", ours.Config.User, says.User},
		{"Tty", ours.Config.Tty, says.Tty},
	} {
		if c.got != c.want {
			return fmt.Errorf("%s is %v; the body says %v", c.what, c.got, c.want)
		}
	}
	return nil
}
