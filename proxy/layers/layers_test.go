package layers

import "testing"

func TestMountTables(t *testing.T) {
	list := parseMounts(`21 1 0:1 / / rw shared:1 - ext4 /dev/a rw
22 21 0:1 /x /data\040root rw,relatime - ext4 /dev/a rw
23 22 0:1 /y /data\040root/overlay2 rw,nosymfollow shared:2 - ext4 /dev/a rw
`)
	if len(list) != 3 || list[1].point != "/data root" || list[1].nofollow || !list[2].nofollow {
		t.Errorf("%+v", list)
	}
	if list.shared("/data root/volumes") || !list.shared("/data root/overlay2/l") || !list.shared("/data rooted") {
		t.Error("shared")
	}
	if !list.below("/data root") || list.below("/data root/overlay2") || list.below("/data") {
		t.Error("below")
	}
}

func TestPlacesOfALayer(t *testing.T) {
	h := New("/e.sock", "/run/binds")
	for path, want := range map[string]bool{
		"/d/overlay2/id/work": true, "/d/overlay2/work": false, "/d/volumes/v/_data": true, "/d/volumes/_data": false,
		"/run/binds/t": true, "/run/binds": false, "/x/_data": false,
	} {
		if h.ours("/d", path) != want {
			t.Errorf("%s: not %t", path, want)
		}
	}
	for path, want := range map[string]bool{
		"/d/overlay2/id/merged": true, "/d/overlay2/merged": false, "/d/overlay2/../x/merged": false, "": false, "/d/overlay2/id/diff": false,
	} {
		if _, err := layerOf("/d", path); (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
}
