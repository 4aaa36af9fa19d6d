package policy

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/volume"
)

// TestFillOnly wants nocopy on every named volume that is not fresh, and on nothing else.
func TestFillOnly(t *testing.T) {
	for _, r := range []struct{ host, want string }{
		{`"Binds":["old:/d"]`, `"Binds":["old:/d:nocopy"]`},
		{`"Binds":["old:/d:"]`, `"Binds":["old:/d:nocopy"]`},
		{`"Binds":["old:/d:ro"]`, `"Binds":["old:/d:ro,nocopy"]`},
		{`"Binds":["old:/d:ro,z"]`, `"Binds":["old:/d:ro,z,nocopy"]`},
		{`"Binds":["old:/d:nocopy"]`, `"Binds":["old:/d:nocopy"]`},
		{`"Binds":["old:/d:nocopy,ro"]`, `"Binds":["old:/d:nocopy,ro"]`},
		{`"Binds":["fresh:/d","fresh:/e:ro","old:/f"]`, `"Binds":["fresh:/d","fresh:/e:ro","old:/f:nocopy"]`},
		{`"Binds":["/host:/d","/bare"]`, `"Binds":["/host:/d","/bare"]`},
		{`"Mounts":[{"Type":"volume","Source":"old","Target":"/d"}]`, `"Mounts":[{"Type":"volume","Source":"old","Target":"/d","VolumeOptions":{"NoCopy":true}}]`},
		{`"Mounts":[{"Type":"volume","Source":"old","Target":"/d","VolumeOptions":{"Labels":{"a":"b"}}}]`, `"Mounts":[{"Type":"volume","Source":"old","Target":"/d","VolumeOptions":{"NoCopy":true,"Labels":{"a":"b"}}}]`},
		{`"Mounts":[{"Type":"volume","Source":"fresh","Target":"/d"}]`, `"Mounts":[{"Type":"volume","Source":"fresh","Target":"/d"}]`},
		{`"Mounts":[{"Type":"volume","Source":"fresh","Target":"/d","VolumeOptions":{"NoCopy":true}}]`, `"Mounts":[{"Type":"volume","Source":"fresh","Target":"/d","VolumeOptions":{"NoCopy":true}}]`},
		{`"Mounts":[{"Type":"volume","Target":"/d"},{"Type":"tmpfs","Target":"/t"},{"Type":"bind","Source":"/s","Target":"/b"}]`, `"Mounts":[{"Type":"volume","Target":"/d"},{"Type":"tmpfs","Target":"/t"},{"Type":"bind","Source":"/s","Target":"/b"}]`},
		{
			`"Mounts":[{"Type":"volume","Target":"/d","VolumeOptions":{"DriverConfig":{"Name":"local","Options":{"o":"bind"}}}}]`,
			`"Mounts":[{"Type":"volume","Target":"/d","VolumeOptions":{"NoCopy":true,"DriverConfig":{"Name":"local","Options":{"o":"bind"}}}}]`,
		},
		{
			`"VolumeDriver":"nfs","Mounts":[{"Type":"volume","Target":"/d"}]`,
			`"VolumeDriver":"nfs","Mounts":[{"Type":"volume","Target":"/d","VolumeOptions":{"NoCopy":true}}]`,
		},
	} {
		read := func(text string) *container.CreateRequest {
			var req container.CreateRequest
			if err := json.Unmarshal([]byte(`{"Image":"i","HostConfig":{`+text+`}}`), &req); err != nil {
				t.Fatal(err)
			}
			return &req
		}
		got, want := read(r.host), read(r.want)
		FillOnly(got, map[string]bool{"fresh": true})
		if a, b := text(t, got), text(t, want); a != b {
			t.Errorf("%s:\n got %s\nwant %s", r.host, a, b)
		}
	}
	FillOnly(&container.CreateRequest{}, nil)
}

func text(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAnonymousName(t *testing.T) {
	for name, want := range map[string]bool{
		strings.Repeat("0a", 32): true, strings.Repeat("f", 64): true,
		strings.Repeat("f", 63): false, strings.Repeat("f", 65): false, strings.Repeat("F", 64): false, strings.Repeat("g", 64): false, "": false, "data": false,
	} {
		if AnonymousName(name) != want {
			t.Errorf("%s: %t", name, !want)
		}
	}
}

func TestOwnedByEngine(t *testing.T) {
	for _, r := range []struct {
		req  volume.CreateOptions
		want bool
	}{
		{volume.CreateOptions{}, true},
		{volume.CreateOptions{Driver: "local", DriverOpts: map[string]string{}}, true},
		{volume.CreateOptions{Driver: "nfs"}, false},
		{volume.CreateOptions{DriverOpts: map[string]string{"device": "/home"}}, false},
		{volume.CreateOptions{ClusterVolumeSpec: &volume.ClusterVolumeSpec{}}, false},
	} {
		if OwnedByEngine(&r.req) != r.want {
			t.Errorf("%+v: %t", r.req, !r.want)
		}
	}
}
