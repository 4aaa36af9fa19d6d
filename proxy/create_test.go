package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"

	"github.com/ds01/ds01-proxy/integration/lab/bodies"
	"github.com/ds01/ds01-proxy/policy"
)

// The bodies of the differential test are the seed's.
const (
	createSeed  = 7
	createCases = 5000
)

// TestI2CreateArrivesAsDecided sends thousands of bodies and reads what arrives as
// Engines do, old ones too: it must be what the client's body says when it is
// decoded once, with the owner's marks on it, and nothing of the top level's host
// settings.
func TestI2CreateArrivesAsDecided(t *testing.T) {
	b := newBed(t)
	b.engine.answer(answerSmuggled)
	m := bodies.NewMaker(createSeed)
	arrived := 0
	for range createCases {
		body := m.Create()
		got := b.do(t, post, "/containers/create", body)
		a := b.engine.take()
		want, err := decodedOnce(body)
		switch {
		case err != nil:
			if got.status != http.StatusBadRequest || len(a) != 0 {
				t.Errorf("seed %d: %q: %v, and the answer is %d; %d arrived", createSeed, body, err, got.status, len(a))
			}
		case got.status != http.StatusCreated || len(a) != 1:
			t.Errorf("seed %d: %q: %d %s; %d arrived", createSeed, body, got.status, got.message(), len(a))
		default:
			arrived++
			if err := compareCreate(want, a[0].Body); err != nil {
				t.Errorf("seed %d: %q arrives as %q: %v", createSeed, body, a[0].Body, err)
			}
		}
	}
	if arrived < createCases/3 || arrived > createCases*9/10 {
		t.Errorf("%d of %d arrived: the test has lost its bite", arrived, createCases)
	}
}

// decodedOnce is what a body says to the Engine's decoder, with nothing after it.
func decodedOnce(body string) (*container.CreateRequest, error) {
	var req container.CreateRequest
	dec := json.NewDecoder(strings.NewReader(body))
	if err := dec.Decode(&req); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows")
	}
	if req.Config == nil {
		return nil, errors.New("there is no config")
	}
	return &req, nil
}

// compareCreate returns how what arrived differs from want with the marks on it.
func compareCreate(want *container.CreateRequest, body string) error {
	got, err := bodies.Read(body)
	switch {
	case err != nil:
		return err
	case got.TopLevel:
		return errors.New("host settings at the top level")
	case got.Config == nil || got.Host == nil:
		return errors.New("parts are missing")
	case got.Config.Labels["ds01.user"] != "alice" || got.Config.Labels["ds01.protected"] != "false":
		return errors.New("the owner's labels are not on it")
	case !strings.HasSuffix(got.Host.CgroupParent, "/ds01-student-alice.slice"):
		return errors.New("the cgroup parent is not hers")
	}
	for key, value := range want.Labels {
		if !strings.HasPrefix(key, "ds01.") && got.Config.Labels[key] != value {
			return fmt.Errorf("label %q is %q, want %q", key, got.Config.Labels[key], value)
		}
	}
	alice := &policy.Subject{User: "alice"}
	if want.HostConfig == nil {
		want.HostConfig = &container.HostConfig{}
	}
	policy.LabelVolumes(want, alice, declaredBy(want), inheritedBy(want))
	policy.StampContainer(want, alice, got.Host.CgroupParent, testTime, nil)
	want.Labels[policy.LabelCreatedAt] = got.Config.Labels[policy.LabelCreatedAt]
	ours, err := json.Marshal(container.CreateRequest{Config: got.Config, HostConfig: got.Host, NetworkingConfig: got.Networking})
	if err != nil {
		return err
	}
	theirs, err := json.Marshal(want)
	if err == nil && string(ours) != string(theirs) {
		err = errors.New("want " + string(theirs))
	}
	return err
}

// declaredBy are the volumes that the fake Engine says an image declares.
func declaredBy(req *container.CreateRequest) []string {
	if req.Image == "" {
		return nil
	}
	return []string{"/declared"}
}

// inheritedBy are the mounts that the fake Engine says other containers have.
func inheritedBy(req *container.CreateRequest) []string {
	if len(req.HostConfig.VolumesFrom) == 0 {
		return nil
	}
	return []string{"/inherited"}
}
