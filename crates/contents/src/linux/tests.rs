//! Claims about disks with a Linux in them, laid out as distributions do.

use std::path::{Path, PathBuf};

use super::*;
use crate::tests::{Bench, MIB, open};

const RELEASE: &str =
    "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\n";

/// What `grub-mkconfig` of Debian 12 writes, but for fonts and screens.
fn debian_cfg(kernels: &str, directory: &str) -> String {
    let entry = |version: &str, id: &str| {
        format!(
            "menuentry 'Debian GNU/Linux, with Linux {version}' --class debian --class gnu-linux \
             $menuentry_id_option '{id}' {{\n\
             \tload_video\n\tinsmod gzio\n\
             \tif [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi\n\
             \tinsmod part_gpt\n\tinsmod ext2\n\
             \tsearch --no-floppy --fs-uuid --set=root aaaa\n\
             \techo\t'Loading Linux {version} ...'\n\
             \tlinux\t{directory}/vmlinuz-{version} root=UUID=1234 ro  quiet $vt_handoff\n\
             \techo\t'Loading initial ramdisk ...'\n\
             \tinitrd\t{directory}/initrd.img-{version}\n}}\n"
        )
    };
    let newest = kernels.split(' ').next().unwrap();
    let mut advanced = String::new();
    for version in kernels.split(' ') {
        advanced += &entry(version, &format!("gnulinux-{version}-advanced-1234"));
    }
    format!(
        "### BEGIN /etc/grub.d/00_header ###\n\
         if [ -s $prefix/grubenv ]; then\n  set have_grubenv=true\n  load_env\nfi\n\
         if [ \"${{next_entry}}\" ] ; then\n   set default=\"${{next_entry}}\"\n\
         \x20  set next_entry=\n   save_env next_entry\n   set boot_once=true\nelse\n\
         \x20  set default=\"${{saved_entry}}\"\nfi\n\
         if [ x\"${{feature_menuentry_id}}\" = xy ]; then\n  menuentry_id_option=\"--id\"\n\
         else\n  menuentry_id_option=\"\"\nfi\nexport menuentry_id_option\n\
         function savedefault {{\n  if [ -z \"${{boot_once}}\" ]; then\n    saved_entry=\"${{chosen}}\"\n\
         \x20   save_env saved_entry\n  fi\n}}\n\
         if [ \"${{recordfail}}\" = 1 ] ; then\n  set timeout=30\nelse\n  set timeout=5\nfi\n\
         {}\
         submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option \
         'gnulinux-advanced-1234' {{\n{advanced}}}\n\
         menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {{\n\tfwsetup\n}}\n",
        entry(newest, "gnulinux-simple-1234").replace(&format!(", with Linux {newest}"), "")
    )
}

fn environment(values: &str) -> String {
    format!("# GRUB Environment Block\n{values}\n{}", "#".repeat(900))
}

/// A root with two kernels, and a menu in its own /boot.
fn debian(bench: &Bench, grubenv: &str) -> Option<PathBuf> {
    for version in ["6.1.0-9-amd64", "6.1.0-18-amd64"] {
        bench.put(
            &format!("root/boot/vmlinuz-{version}"),
            format!("kernel {version}"),
        );
        bench.put(
            &format!("root/boot/initrd.img-{version}"),
            format!("initrd {version}"),
        );
    }
    bench.put("root/usr/lib/os-release", RELEASE);
    bench.link("root/etc/os-release", "../usr/lib/os-release");
    bench.put("root/etc/fstab", "UUID=1234 / ext4 errors=remount-ro 0 1\n");
    let cfg = debian_cfg("6.1.0-18-amd64 6.1.0-9-amd64", "/boot");
    bench.put("root/boot/grub/grub.cfg", cfg);
    bench.put("root/boot/grub/grubenv", environment(grubenv));
    let root = bench.ext("root", "ext4", &[])?;
    on_disk(bench, &root)
}

/// An ESP with Debian's loaders, and a root.
fn on_disk(bench: &Bench, root: &Path) -> Option<PathBuf> {
    bench.put("esp/EFI/BOOT/BOOTX64.EFI", "shim");
    bench
        .put("esp/EFI/debian/shimx64.efi", "shim")
        .put("esp/EFI/debian/grubx64.efi", "grub");
    bench.put(
        "esp/EFI/debian/grub.cfg",
        "search.fs_uuid 1234 root\nconfigfile $prefix/grub.cfg\n",
    );
    let esp = bench.fat("esp", "16", &[])?;
    let script =
        "label: gpt\nsize=40MiB, type=uefi\nsize=60MiB, type=linux\nsize=60MiB, type=linux\n";
    bench.disk(script, &[(MIB, &esp), (41 * MIB, root)])
}

fn look(path: &Path) -> LinuxBoot {
    linux_boot(&open(path)).unwrap_or_else(|error| panic!("{error}"))
}

fn refusal(path: &Path) -> String {
    linux_boot(&open(path)).unwrap_err().to_string()
}

fn read(file: &ReadableFile) -> String {
    String::from_utf8(file.read_all(1000).unwrap()).unwrap()
}

#[test]
fn the_first_entry_is_booted_where_nothing_was_saved() {
    let bench = Bench::new();
    let Some(disk) = debian(&bench, "") else {
        return;
    };
    let boot = look(&disk);
    assert_eq!(boot.distribution.id, "debian");
    assert_eq!(boot.distribution.version.as_deref(), Some("12"));
    assert_eq!(boot.title.as_deref(), Some("Debian GNU/Linux"));
    assert_eq!(boot.source, Source::Grub("/boot/grub/grub.cfg".into()));
    assert_eq!(read(&boot.kernel), "kernel 6.1.0-18-amd64");
    assert_eq!(read(&boot.initrds[0]), "initrd 6.1.0-18-amd64");
    assert_eq!(boot.arguments, "root=UUID=1234 ro quiet");
    assert_eq!((boot.boot_partition, boot.root_partition), (2, Some(2)));
    assert_eq!(boot.loaders.shim.unwrap().path(), "/EFI/debian/shimx64.efi");
    assert_eq!(boot.loaders.grub.unwrap().path(), "/EFI/debian/grubx64.efi");
}

#[test]
fn what_was_saved_is_booted_by_id_title_or_number() {
    let older = "6.1.0-9-amd64";
    for saved in [
        "gnulinux-advanced-1234>gnulinux-6.1.0-9-amd64-advanced-1234",
        "1>1",
        "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-9-amd64",
    ] {
        for name in ["saved_entry", "next_entry"] {
            let bench = Bench::new();
            let Some(disk) = debian(&bench, &format!("{name}={saved}")) else {
                return;
            };
            let boot = look(&disk);
            assert_eq!(
                boot.kernel.path(),
                format!("/boot/vmlinuz-{older}"),
                "{saved}"
            );
            assert_eq!(read(&boot.initrds[0]), format!("initrd {older}"));
        }
    }
    // What is not there, or boots no Linux, leaves the first that does.
    for saved in ["nothing", "uefi-firmware", "1>7", "9"] {
        let bench = Bench::new();
        let Some(disk) = debian(&bench, &format!("saved_entry={saved}")) else {
            return;
        };
        assert_eq!(
            read(&look(&disk).kernel),
            "kernel 6.1.0-18-amd64",
            "{saved}"
        );
    }
}

#[test]
fn a_boot_on_its_own_partition_is_found_by_the_fstab() {
    let bench = Bench::new();
    bench
        .put("root/etc/os-release", RELEASE)
        .put("root/boot/README", "empty");
    // Not what is booted: a kernel below the mount point.
    bench
        .put("root/boot/vmlinuz-1", "old")
        .put("root/boot/initrd.img-1", "old");
    bench.put(
        "root/etc/fstab",
        "/dev/vda3 / ext4\nLABEL=the\\040boot  /boot ext4 defaults 0 2\n",
    );
    bench
        .put("boot/vmlinuz-6.1.0-18-amd64", "kernel")
        .put("boot/initrd.img-6.1.0-18-amd64", "initrd");
    bench.put("boot/grub/grub.cfg", debian_cfg("6.1.0-18-amd64", ""));
    let images = [
        bench.ext("boot", "ext4", &["-L", "the boot"]),
        bench.ext("root", "ext4", &[]),
    ];
    let [Some(boot), Some(root)] = images else {
        return;
    };
    let script = "label: dos\nsize=60MiB\nsize=60MiB\n";
    let disk = bench
        .disk(script, &[(MIB, &root), (61 * MIB, &boot)])
        .unwrap();
    let boot = look(&disk);
    assert_eq!(boot.kernel.path(), "/vmlinuz-6.1.0-18-amd64");
    assert_eq!((boot.boot_partition, boot.root_partition), (2, Some(1)));
    assert_eq!(boot.distribution.family(), Family::Debian);
}

/// Fedora's usual layout: /boot of ext4, the rest Btrfs.
fn fedora(bench: &Bench, grubenv: &str) -> Option<PathBuf> {
    let cfg = "set pager=1\nif [ -f ${config_directory}/grubenv ]; then\n  load_env -f \
               ${config_directory}/grubenv\nelif [ -s $prefix/grubenv ]; then\n  load_env\nfi\n\
               if [ \"${next_entry}\" ] ; then\n   set default=\"${next_entry}\"\nelse\n   set \
               default=\"${saved_entry}\"\nfi\nif [ -z \"${kernelopts}\" ]; then\n  set \
               kernelopts=\"root=UUID=fallback ro\"\nfi\ninsmod blscfg\nblscfg\n\
               if [ \"$fwsetup\" = 1 ]; then\n menuentry 'UEFI Firmware Settings' { fwsetup; }\nfi\n";
    bench
        .put("boot/grub2/grub.cfg", cfg)
        .put("boot/grub2/grubenv", environment(grubenv));
    let id = "0123456789abcdef0123456789abcdef";
    for version in [
        "6.5.6-300.fc39.x86_64",
        "6.11.4-201.fc39.x86_64",
        "0-rescue-0123",
    ] {
        let entry = format!(
            "title Fedora Linux ({version}) 39 (Workstation Edition)\nversion {version}\n\
             linux /vmlinuz-{version}\ninitrd /initramfs-{version}.img $tuned_initrd\n\
             options $kernelopts rootflags=subvol=root rhgb\ngrub_users $grub_users\n"
        );
        bench.put(&format!("boot/loader/entries/{id}-{version}.conf"), entry);
        bench.put(&format!("boot/vmlinuz-{version}"), version);
        bench.put(&format!("boot/initramfs-{version}.img"), "initrd");
    }
    bench
        .put("esp/EFI/fedora/shimx64.efi", "shim")
        .put("esp/EFI/BOOT/fbx64.efi", "x");
    let esp = bench.fat("esp", "16", &[])?;
    let boot = bench.ext("boot", "ext4", &[])?;
    let mut btrfs = vec![0; 0x11000];
    btrfs[0x10040..0x10048].copy_from_slice(b"_BHRfS_M");
    bench.put("btrfs", btrfs);
    let script = "label: gpt\nsize=40MiB, type=uefi\nsize=60MiB\nsize=60MiB\n";
    let parts = [
        (MIB, &*esp),
        (41 * MIB, &boot),
        (101 * MIB, &bench.path("btrfs")),
    ];
    bench.disk(script, &parts)
}

#[test]
fn entries_of_the_boot_loader_specification_are_menu_items_of_grub() {
    let bench = Bench::new();
    let Some(disk) = fedora(&bench, "kernelopts=root=UUID=77 ro") else {
        return;
    };
    let boot = look(&disk);
    assert_eq!(boot.kernel.path(), "/vmlinuz-6.11.4-201.fc39.x86_64");
    assert_eq!(boot.initrds.len(), 1);
    assert_eq!(boot.arguments, "root=UUID=77 ro rootflags=subvol=root rhgb");
    assert!(
        matches!(&boot.source, Source::LoaderEntry(path) if path.ends_with("6.11.4-201.fc39.x86_64.conf"))
    );
    // Its root cannot be read; its entry says what it is.
    assert_eq!(boot.distribution.id, "fedora");
    assert_eq!(boot.root_partition, None);
    assert_eq!(boot.loaders.shim.unwrap().path(), "/EFI/fedora/shimx64.efi");
    let bench = Bench::new();
    let saved = "saved_entry=0123456789abcdef0123456789abcdef-6.5.6-300.fc39.x86_64";
    let boot = look(&fedora(&bench, saved).unwrap());
    assert_eq!(boot.kernel.path(), "/vmlinuz-6.5.6-300.fc39.x86_64");
    assert_eq!(
        boot.arguments,
        "root=UUID=fallback ro rootflags=subvol=root rhgb"
    );
}

#[test]
fn without_a_menu_the_newest_kernel_with_an_initrd_is_booted() {
    let bench = Bench::new();
    bench.put("root/etc/os-release", RELEASE);
    for version in ["6.1.0-9-amd64", "6.1.0-18-amd64"] {
        bench.put(&format!("root/boot/vmlinuz-{version}"), version);
        bench.put(&format!("root/boot/initrd.img-{version}"), version);
    }
    bench.put("root/boot/vmlinuz-6.2.0", "without an initrd");
    let uuid = "d15c1e55-0000-4000-8000-000000000099";
    let Some(root) = bench.ext("root", "ext4", &["-U", uuid]) else {
        return;
    };
    // The whole disk is the file system.
    let boot = look(&root);
    assert_eq!(boot.source, Source::Newest);
    assert_eq!(boot.kernel.path(), "/boot/vmlinuz-6.1.0-18-amd64");
    assert_eq!(boot.arguments, format!("root=UUID={uuid} ro quiet"));
}

#[test]
fn systemd_boot_says_which_entry_of_the_esp_is_booted() {
    let bench = Bench::new();
    bench.put("esp/loader/loader.conf", "timeout 3\ndefault arch*\n");
    let options = "options root=PARTUUID=1 rw\n";
    for name in ["arch", "zzz"] {
        let entry = format!(
            "title Arch Linux\nlinux /vmlinuz-linux\ninitrd /amd-ucode.img\n\
             initrd /initramfs-linux.img\n{options}options {name}\n"
        );
        bench.put(&format!("esp/loader/entries/{name}.conf"), entry);
    }
    bench
        .put("esp/vmlinuz-linux", "kernel")
        .put("esp/initramfs-linux.img", "initrd");
    bench
        .put("esp/amd-ucode.img", "microcode")
        .put("esp/EFI/systemd/systemd-bootx64.efi", "x");
    let Some(esp) = bench.fat("esp", "32", &[]) else {
        return;
    };
    let script = "label: gpt\nsize=60MiB, type=uefi\nsize=60MiB\n";
    let boot = look(&bench.disk(script, &[(MIB, &esp)]).unwrap());
    let initrds: Vec<String> = boot.initrds.iter().map(read).collect();
    assert_eq!(initrds, ["microcode", "initrd"]);
    assert_eq!(boot.arguments, "root=PARTUUID=1 rw arch");
    assert_eq!(boot.distribution.family(), Family::Arch);
}

#[test]
fn what_cannot_be_read_is_refused_by_its_name() {
    let marks: [(usize, &[u8], &str); 6] = [
        (0, b"XFSB", "partition 1 holds XFS"),
        (0x10040, b"_BHRfS_M", "partition 1 holds Btrfs"),
        (
            0,
            b"LUKS\xba\xbe",
            "partition 1 holds LUKS: what is encrypted",
        ),
        (
            512,
            b"LABELONE\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0LVM2 001",
            "partition 1 holds LVM",
        ),
        (3, b"NTFS    ", "partition 1 holds NTFS: Windows, perhaps"),
        (0, b"", "no partition of the disk holds a Linux"),
    ];
    for (at, mark, words) in marks {
        let bench = Bench::new();
        let mut bytes = vec![0; 0x11000];
        bytes[at..at + mark.len()].copy_from_slice(mark);
        bench.put("part", bytes);
        let parts = [(MIB, &*bench.path("part"))];
        let Some(disk) = bench.disk("label: gpt\nsize=60MiB\n", &parts) else {
            return;
        };
        let refused = refusal(&disk);
        assert!(refused.contains(words), "{words}: {refused}");
    }
}

#[test]
fn a_boot_that_the_fstab_puts_on_xfs_is_refused() {
    let bench = Bench::new();
    bench.put("root/etc/os-release", RELEASE);
    bench.put(
        "root/etc/fstab",
        "UUID=01020304-0506-0708-090a-0b0c0d0e0f10 /boot xfs\n",
    );
    bench
        .put("root/boot/vmlinuz-1", "old")
        .put("root/boot/initrd.img-1", "old");
    let mut xfs = vec![0; 4096];
    xfs[..4].copy_from_slice(b"XFSB");
    xfs[32..48].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    bench.put("xfs", xfs);
    let Some(root) = bench.ext("root", "ext4", &[]) else {
        return;
    };
    let parts = [(MIB, &*root), (61 * MIB, &bench.path("xfs"))];
    let disk = bench
        .disk("label: gpt\nsize=60MiB\nsize=60MiB\n", &parts)
        .unwrap();
    assert_eq!(
        refusal(&disk),
        "/boot cannot be read: partition 2 holds XFS: only ext4 (ext2, ext3) and FAT are read"
    );
}

#[test]
fn a_menu_that_names_what_is_not_there_is_not_guessed_at() {
    let bench = Bench::new();
    bench.put("root/etc/os-release", RELEASE);
    bench
        .put("root/boot/vmlinuz-1", "old")
        .put("root/boot/initrd.img-1", "old");
    bench.put(
        "root/boot/grub/grub.cfg",
        debian_cfg("6.1.0-18-amd64", "/boot"),
    );
    let Some(root) = bench.ext("root", "ext4", &[]) else {
        return;
    };
    assert_eq!(refusal(&root), "/boot/vmlinuz-6.1.0-18-amd64 is not there");
}

#[test]
fn an_endless_menu_ends() {
    let cfgs = [
        "source /boot/grub/grub.cfg\nsource /boot/grub/grub.cfg\n".repeat(1000),
        "set a=xxxxxxxxxxxxxxxx\n".to_owned() + &"set a=\"$a$a$a$a\"\n".repeat(1000),
        "menuentry 'a' {\n".repeat(20_000),
        "if true; then\n".repeat(20_000),
        "submenu 'a' { submenu 'b' {\n".repeat(1000),
        "menuentry 'a' { true; }\n".repeat(20_000),
        format!(
            "set a={}\n{}",
            "x".repeat(100_000),
            "true \"$a$a$a$a\"\n".repeat(50_000)
        ),
        format!(
            "set a={}\ntrue {}\n",
            "x".repeat(100_000),
            "$a".repeat(400_000)
        ),
        "if [ -f /boot/nothing ]; then true; fi\n".repeat(20_000),
        "load_env\n".repeat(20_000),
        "! ".repeat(100_000),
        format!("[ {}", "! ".repeat(100_000)),
    ];
    for cfg in cfgs {
        let bench = Bench::new();
        bench.put("root/etc/os-release", RELEASE);
        bench
            .put("root/boot/vmlinuz-1", "old")
            .put("root/boot/initrd.img-1", "old");
        bench.put("root/boot/grub/grub.cfg", cfg);
        let Some(root) = bench.ext("root", "ext4", &[]) else {
            return;
        };
        let refused = refusal(&root);
        assert!(refused.contains("grub.cfg"), "{refused}");
    }
}
