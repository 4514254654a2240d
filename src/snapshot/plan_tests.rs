use super::{
    super::{mount::Mount, resolve::check_known},
    *,
};

#[test]
fn a_list_is_read_without_a_disk() {
    let mount = |kind: &str, source: &str, options: &[&str]| Mount {
        kind: kind.into(),
        source: source.into(),
        target: String::new(),
        options: options.iter().map(|option| option.to_string()).collect(),
    };
    let block = mount("mkfs/ext4", "/D/rwlayer.img", &["X-containerd.mkfs.fs=ext4", "rw", "loop"]);
    let bind = mount("format/mkdir/bind", "{{ mount 0 }}/upper", &["rw", "rbind"]);
    let alone = [block.clone(), bind.clone()];
    assert_eq!(plan(&MountList::read(&alone).unwrap()).unwrap().items, [Item::Block("/D/rwlayer.img")]);
    let parents = [
        block.clone(),
        mount("erofs", "/P1/layer.erofs", &["ro", "loop"]),
        mount("erofs", "/P2/layer.erofs", &["ro", "loop"]),
        mount(
            "format/mkdir/overlay",
            "overlay",
            &[
                "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                "workdir={{ mount 0 }}/work",
                "upperdir={{ mount 0 }}/upper",
                "lowerdir={{ overlay 1 2 }}",
            ],
        ),
    ];
    let image = |path| Item::Image { path, devices: Vec::new() };
    let list = MountList::read(&parents).unwrap();
    let found = plan(&list).unwrap();
    assert_eq!(
        found.items,
        [Item::Block("/D/rwlayer.img"), image("/P1/layer.erofs"), image("/P2/layer.erofs")]
    );
    assert!(check_known(&list).is_ok());

    for list in [
        vec![block.clone()],
        vec![bind, block.clone()],
        vec![mount("mkfs/xfs", "/D/rwlayer.img", &[]), mount("format/bind", "{{ mount 0 }}/upper", &[])],
        vec![block.clone(), mount("bind", "{{ mount 0 }}/upper", &[])],
        vec![block.clone(), mount("format/bind", "{{ mount 0 }}", &[])],
        vec![block.clone(), mount("format/overlay", "overlay", &["upperdir={{ mount 0 }}/other"])],
        vec![block, mount("format/overlay", "overlay", &["lowerdir={{ mount 0 }}"])],
        vec![mount("mkfs/erofs", "/P/layer.erofs", &[]), mount("format/bind", "{{ mount 0 }}", &[])],
    ] {
        assert!(matches!(plan(&MountList::read(&list).unwrap()), Err(MountError::Form(_))), "{list:?}");
    }
}
